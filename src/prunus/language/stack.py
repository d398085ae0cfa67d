"""The repeated blocks of a transformer, and how each of them is called.

Nothing is known here about families. The blocks are found among the residual blocks of the operators that the model
runs; how the model calls them (positions, masks, rotary tables) is recorded from its own forward pass, with the blocks
replaced by recorders. A model that does more between its blocks than hand the hidden states on is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..errors import InputError, PrunusError
from ..graph import blocks as residual_blocks

HIDDEN = "hidden_states"

# ------------------------------------------------------------------------------------------------------------- blocks


def find_blocks(model: nn.Module, tokens: Any = None) -> tuple[str, ...]:
    """Names of the repeated blocks, in order.

    They are all members of the container that holds the residual blocks of what the model runs. Where it cannot be
    traced, or no tokens are given, that is the `nn.ModuleList` or `nn.Sequential` of two or more modules of one class
    that has most parameters.

    Args:
        model: only read; its weights may lie on the meta device.
        tokens: (samples, length) token ids, or whatever the model takes.

    Raises:
        InputError: there are none, or there are two stacks (an encoder and a decoder).

    >>> stack = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    >>> find_blocks(nn.ModuleDict({"embed": nn.Embedding(5, 4), "layers": stack}))
    ('layers.0', 'layers.1', 'layers.2')
    """
    found = _by_operators(model, tokens) if tokens is not None else set()
    sizes = {name: _matrix_entries(model.get_submodule(name)) for name in found or _lists(model)}
    sizes = {name: size for name, size in sizes.items() if size}
    if not sizes:
        raise InputError(
            f"{type(model).__name__} has no list of two or more blocks with linear layers, so it cannot be pruned "
            "block by block; load it whole and use prunus.sparsify"
        )
    largest = max(sizes, key=lambda name: sizes[name])
    others = [name for name in sizes if name != largest and sizes[name] > sizes[largest] / 4]
    if others:
        raise InputError(
            f"{type(model).__name__} has several stacks of blocks ({', '.join([largest, *others])}), which are not one "
            "chain; load it whole and use prunus.sparsify"
        )
    return tuple(
        f"{largest}.{child}" if largest else child for child, _ in model.get_submodule(largest).named_children()
    )


def _by_operators(model: nn.Module, tokens: Any) -> set[str]:
    """Containers of the residual blocks; of nested ones the outer."""
    try:
        found = [block.name for block in residual_blocks(model, tokens) if block.unit == "block"]
    except PrunusError:
        return set()
    containers = {name.rpartition(".")[0] for name in found}
    lists = {name for name in containers if isinstance(model.get_submodule(name), nn.ModuleList | nn.Sequential)}
    lists = {name for name in lists if len(model.get_submodule(name)) > 1}  # type: ignore[arg-type]
    return {name for name in lists if not any(name != outer and f"{name}.".startswith(f"{outer}.") for outer in lists)}


def _lists(model: nn.Module) -> set[str]:
    found: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{o}.") for o in found):
            continue
        if len(module) >= 2 and len({type(child) for child in module}) == 1:
            found.add(name)
    return found


def _matrix_entries(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() >= 2)


# -------------------------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True)
class BlockCall:
    """How a block is called, hidden states apart: they stand first, or are the keyword of that name.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keywords.
        keyword: the hidden states are given as a keyword.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: bool = False

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that the block makes from (batch, length, hidden)."""
        kwargs = {**self.kwargs, **({HIDDEN: hidden} if self.keyword else {})}
        return hidden_of(block(*(() if self.keyword else (hidden,)), *self.args, **kwargs))

    def to(self, device: torch.device | str) -> BlockCall:
        """The same with its tensors elsewhere."""
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), (self.args, dict(self.kwargs)))
        return BlockCall(args, kwargs, self.keyword)

    def same(self, other: BlockCall) -> bool:
        """Whether both give a block the same: equal tensors, equal other values."""
        (mine, shape), (theirs, its) = (tree_flatten((one.args, dict(one.kwargs))) for one in (self, other))
        return shape == its and self.keyword == other.keyword and all(map(_equal, mine, theirs))


def _equal(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
        return mine is theirs or (
            isinstance(mine, Tensor)
            and isinstance(theirs, Tensor)
            and mine.shape == theirs.shape
            and torch.equal(mine, theirs)
        )
    return type(mine) is type(theirs) and (mine is theirs or mine == theirs)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise InputError(f"a block returned {type(first).__name__}, not hidden states")
    return first


def calls_of(model: nn.Module, names: Sequence[str], batches: Iterable[Tensor]) -> tuple[list[BlockCall], list[Tensor]]:
    """How each block is called, and the hidden states that enter the first one for each batch.

    Args:
        model: run in inference up to its blocks.
        names: of the blocks, in order.
        batches: token ids, all of one shape.

    Raises:
        InputError: the model is no chain of these blocks.
    """
    with Recorder(model, [model.get_submodule(name) for name in names]) as recorder:
        hidden = [recorder(batch) for batch in batches]
    return recorder.calls, hidden


class _Reached(Exception):
    """Ends a forward pass at the last block."""


class Recorder:
    """Runs a model up to its blocks and notes how each is called; a context, inside which the blocks are replaced.

    Attributes:
        calls: of each block, the same for all inputs; an input that would change them is refused.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.model, self.blocks = model, list(blocks)
        self.calls: list[BlockCall] = []
        self._seen: list[BlockCall] = []
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._form: Callable[[Tensor], Any] | None = None
        self._config: Any = getattr(model, "config", None)
        self._caching: bool | None = None

    def __enter__(self) -> Recorder:
        self._caching = getattr(self._config, "use_cache", None)
        if self._caching is not None:
            self._config.use_cache = False  # a cache would be one more thing that a block is called with
        for index, block in enumerate(self.blocks):
            block.forward = MethodType(lambda _self, *args, _at=index, **kwargs: self._record(_at, args, kwargs), block)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._caching is not None:
            self._config.use_cache = self._caching
        for block in self.blocks:
            vars(block).pop("forward", None)

    def __call__(self, ids: Tensor) -> Tensor:
        """The hidden states (batch, length, hidden) that reach the first block.

        Args:
            ids: (batch, length) token ids, without padding.

        Raises:
            InputError: the model does more between its blocks than hand the hidden states on, or calls them
                differently from one input to the next.
        """
        self._seen, self._first, self._last = [], None, None
        try:
            with torch.no_grad():
                self.model(ids)
        except _Reached:
            pass
        if len(self._seen) != len(self.blocks) or self._first is None:
            raise self._refused(f"called {len(self._seen)} of its {len(self.blocks)} blocks")
        if not self.calls:
            self.calls = self._seen
        for index, (before, now) in enumerate(zip(self.calls, self._seen)):
            if not before.same(now):
                raise self._refused(
                    f"hands block {index} something besides its hidden states that depends on the tokens (states of an "
                    "encoder, a padding mask)"
                )
        return self._first

    def _record(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keyword = not args
        hidden = kwargs.pop(HIDDEN, None) if keyword else args[0]
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            raise self._refused(f"calls block {index} without hidden states (batch, length, hidden)")
        if index != len(self._seen) or (index > 0 and hidden is not self._last):
            raise self._refused(f"does more before block {index} than hand the hidden states on")
        call = BlockCall(args[1:], kwargs, keyword)
        self._seen.append(call)
        if index == 0:
            self._first = hidden
            if self._form is None:
                self._form = self._returned(self.blocks[0], call, hidden)
        if index == len(self.blocks) - 1:
            raise _Reached
        self._last = hidden.clone()  # an object of its own, so that the next block's input can be recognised
        assert self._form is not None
        return self._form(self._last)

    def _returned(self, block: nn.Module, call: BlockCall, hidden: Tensor) -> Callable[[Tensor], Any]:
        """How the block hands hidden states back: tried on the meta device."""
        trial = copy.deepcopy(block)
        vars(trial).pop("forward", None)
        trial.to("meta")
        moved, states = call.to("meta"), hidden.to("meta")
        kwargs = {**moved.kwargs, **({HIDDEN: states} if call.keyword else {})}
        output = trial(*(() if call.keyword else (states,)), *moved.args, **kwargs)
        if isinstance(output, tuple):
            return lambda given: (given, *output[1:])
        return lambda given: given

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"{type(self.model).__name__} {what}, so it cannot be pruned block by block; load it whole and use "
            "prunus.sparsify"
        )
