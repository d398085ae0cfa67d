"""The repeated blocks of a transformer, and how each of them is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import InputError, PrunusError
from ..graph import blocks


@dataclass(frozen=True)
class BlockCall:
    """Arguments of one call of a block, in which the hidden states are one of the leaves.

    Attributes:
        leaves: of (args, kwargs), the hidden states as None.
        layout: how they are put together again.
        hidden: place of the hidden states among the leaves.
    """

    leaves: tuple[Any, ...]
    layout: Any
    hidden: int

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block on other hidden states; its first output of their shape."""
        leaves = [hidden if i == self.hidden else leaf for i, leaf in enumerate(self.leaves)]
        args, kwargs = tree_unflatten(leaves, self.layout)
        return hidden_of(block(*args, **kwargs), tuple(hidden.shape))

    def same(self, other: BlockCall) -> bool:
        """Whether all but the hidden states are equal."""
        return (
            self.hidden == other.hidden
            and len(self.leaves) == len(other.leaves)
            and all(map(_same, self.leaves, other.leaves))
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and (one is other or not isinstance(one, (int, float, str)) or one == other)


def hidden_of(output: Any, shape: tuple[int, ...]) -> Tensor:
    """The first tensor of that shape in what a block gives."""
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor) and tuple(leaf.shape) == shape:
            return leaf
    raise InputError(f"a block gives no hidden states of the shape {shape} that it takes")


def find_blocks(model: nn.Module, tokens: Tensor) -> tuple[str, ...]:
    """Names of the repeated residual blocks in the order in which they run, found in the operators that the model runs;
    where it cannot be traced, the longest list of modules of one class.

    Args:
        model: only read.
        tokens: (samples, length) token ids, or whatever the model takes.

    Raises:
        InputError: there are none.
    """
    try:
        found = [block.name for block in blocks(model, tokens) if block.unit == "block"]
    except PrunusError:
        found = []
    found = [name for name in found if _has_linear(model.get_submodule(name))]
    stacks = Counter(name.rpartition(".")[0] for name in found)
    names = [name for name in found if stacks[name.rpartition(".")[0]] == max(stacks.values(), default=0)]
    if not names:
        names = _longest_list(model)
    if not names:
        raise InputError(
            f"{type(model).__name__} has no repeated residual blocks with linear layers: use prunus.sparsify for other "
            "models"
        )
    return tuple(names)


def _has_linear(block: nn.Module) -> bool:
    return any(parameter.dim() == 2 for parameter in block.parameters())


def _longest_list(model: nn.Module) -> list[str]:
    best: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module}) == 1:
            names = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
            if len(names) > len(best) and _has_linear(module[0]):
                best = names
    return best


class _Enough(Exception):
    """Ends a forward pass early."""


def calls_of(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> tuple[list[BlockCall], list[Tensor]]:
    """How each block is called, and the hidden states that enter the first one for each batch.

    Args:
        model: run in inference on the batches: whole on the first two, up to the first block on the others.
        names: of the blocks.
        batches: token ids, all of one shape.

    Raises:
        InputError: a block does not run once in a pass, is handed something besides the hidden states that depends on
            the tokens, or does not follow the one before it.
    """
    seen: list[dict[str, tuple[BlockCall, Tensor, Tensor]]] = []
    first: list[Tensor] = []
    with torch.no_grad(), _without_cache(model):
        for number, batch in enumerate(batches):
            if number < 2:
                seen.append(_record(model, names, batch))
                first.append(seen[-1][names[0]][1])
            else:
                first.append(_entering(model, names[0], batch))
    for name, before in zip(names[1:], names):
        if not torch.equal(seen[0][name][1], seen[0][before][2]):
            raise InputError(f"block {name!r} does not read what {before!r} gives: they cannot be pruned one by one")
    for name in names:
        if len(seen) > 1 and not seen[0][name][0].same(seen[1][name][0]):
            raise InputError(
                f"block {name!r} is handed something besides its hidden states that depends on the tokens (states "
                "of an encoder, a padding mask): only blocks that read one another alone can be pruned one by one"
            )
    return [seen[0][name][0] for name in names], first


def _record(model: nn.Module, names: Sequence[str], batch: Tensor) -> dict[str, tuple[BlockCall, Tensor, Tensor]]:
    found: dict[str, tuple[BlockCall, Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def read(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if name in found:
                raise InputError(f"block {name!r} runs several times in one pass")
            call, hidden = _call_of(args, kwargs)
            found[name] = (call, hidden, hidden_of(output, tuple(hidden.shape)))

        return read

    handles = [model.get_submodule(n).register_forward_hook(hook(n), with_kwargs=True) for n in names]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in found:
            raise InputError(f"block {name!r} did not run on the tokens")
    return found


def _entering(model: nn.Module, name: str, batch: Tensor) -> Tensor:
    found: list[Tensor] = []

    def read(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(_call_of(args, kwargs)[1])
        raise _Enough

    handle = model.get_submodule(name).register_forward_pre_hook(read, with_kwargs=True)
    try:
        model(batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


def _call_of(args: Any, kwargs: Any) -> tuple[BlockCall, Tensor]:
    """The call and its hidden states: the first floating point tensor of two dimensions or more."""
    leaves, layout = tree_flatten((args, kwargs))
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1:
            others = tuple(None if j == i else other for j, other in enumerate(leaves))
            return BlockCall(others, layout, i), leaf
    raise InputError("a block is handed no hidden states")


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Keys and values of earlier tokens are not kept: a block is run on the same tokens twice."""
    config = getattr(model, "config", None)
    kept = getattr(config, "use_cache", None)
    if kept is None:
        yield
        return
    config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        config.use_cache = kept  # type: ignore[union-attr]
