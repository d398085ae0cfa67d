"""How much a block, or a run of blocks, changes what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import InputError
from ..types import Block
from .state import preserved, seeded


def block_influence(
    model: nn.Module, batches: Iterable[Any], blocks: Sequence[Block], *, max_batches: int | None = None, seed: int = 0
) -> dict[str, float]:
    """1 - cosine of what enters and what leaves each block, averaged over tokens: small means that it does little.

    Of a branch f(x), what enters is x and what leaves x + f(x). Tensors of up to three dimensions are compared along
    the last one, token by token; feature maps sample by sample, whole. The model is left exactly as it was.

    Args:
        model: the blocks' own.
        batches: (inputs, target) pairs, dicts that are passed to the model whole, or inputs. Where a dict has an
            "attention_mask" (samples, tokens), tokens at which it is 0 do not count.
        blocks: from `prunus.graph.blocks`; those that cannot be removed are passed over.
        max_batches: stop after so many.
        seed: of random numbers that the model draws.

    Returns:
        Block name -> influence in [0, 2].

    Raises:
        InputError: no batches.

    Source: "block influence" of Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
    Expect", 2024, arXiv:2403.03853, eq. 1.
    """
    totals = {block.name: [0.0, 0.0] for block in blocks if not block.why_not}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    count = 0
    with preserved(model), seeded(seed), torch.no_grad():
        model.eval()
        seen: dict[str, Tensor] = {}
        with _watched(model, [block for block in blocks if not block.why_not], seen):
            for batch in batches:
                given = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
                seen.clear()
                _call(model, given)
                for name, distances in seen.items():
                    counted = _counted(distances, _mask_of(given))
                    totals[name][0] += float(counted.sum())
                    totals[name][1] += counted.numel()
                count += 1
                if count == max_batches:
                    break
    if not count:
        raise InputError("batches: there are none; give at least one batch of inputs")
    return {name: total / max(number, 1.0) for name, (total, number) in totals.items()}


def angular_distances(
    model: nn.Module, batches: Iterable[Any], blocks: Sequence[Block], run: int, *, max_batches: int | None = None
) -> dict[str, float]:
    """Angle between what enters a block and what leaves the last of `run` blocks from there on, divided by pi, at the
    last token of each sequence, averaged over sequences. The model is left exactly as it was.

    Args:
        model: the blocks' own.
        batches: as for `block_influence`. The last token is the last one that is no padding.
        blocks: whole blocks in the order in which they run, each the next one's input.
        run: how many blocks in a row, 1 or more.
        max_batches: stop after so many.

    Returns:
        Name of the first block of each run -> distance in [0, 1].

    Raises:
        InputError: no batches, or a run longer than the stack.

    Source: Gromov, Tirumala, Shapourian, Glorioso, Roberts, "The Unreasonable Ineffectiveness of the Deeper Layers",
    ICLR 2025, arXiv:2403.17887, eq. 7.
    """
    if not 1 <= run <= len(blocks):
        raise InputError(f"angular_distances: run={run} must lie in [1, {len(blocks)}], the number of blocks")
    firsts = range(len(blocks) - run + 1)
    totals, count, sequences = [0.0 for _ in firsts], 0, 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    with preserved(model), seeded(0), torch.no_grad(), _states(model, blocks, ends):
        model.eval()
        for batch in batches:
            given = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
            _call(model, given)
            mask = _mask_of(given)
            for first in firsts:
                before = _last(ends[blocks[first].name][0], mask)
                after = _last(ends[blocks[first + run - 1].name][1], mask)
                cosine = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
                totals[first] += float(torch.acos(cosine.clamp(-1, 1)).sum()) / torch.pi
            sequences, count = sequences + len(ends[blocks[0].name][0]), count + 1
            if count == max_batches:
                break
    if not count:
        raise InputError("batches: there are none; give at least one batch of inputs")
    return {blocks[first].name: totals[first] / sequences for first in firsts}


@contextmanager
def _states(model: nn.Module, blocks: Sequence[Block], ends: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """What entered and what left each block in the last pass."""
    entered: dict[str, Tensor] = {}

    def enter(block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            name = block.enters[1]
            entered[block.name] = (args[int(name)] if name.isdigit() else kwargs[name]).clone()

        return hook

    def leave(block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            value = out[block.leaves[1]] if isinstance(out, tuple | list) else out
            ends[block.name] = (entered.pop(block.name), value.clone())

        return hook

    handles = []
    try:
        for block in blocks:
            source, sink = model.get_submodule(block.enters[0]), model.get_submodule(block.leaves[0])
            handles.append(source.register_forward_pre_hook(enter(block), with_kwargs=True))
            handles.append(sink.register_forward_hook(leave(block)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last(states: Tensor, mask: Tensor | None) -> Tensor:
    """(samples, width) of the last token of each sequence."""
    if states.dim() != 3:
        return states.flatten(1)
    if mask is None or mask.shape != states.shape[:2]:
        return states[:, -1]
    places = torch.arange(states.shape[1], device=states.device)
    last = torch.where(mask.bool(), places, -1).amax(1).clamp_min(0)
    return states[torch.arange(len(states), device=states.device), last]


def _mask_of(batch: Any) -> Tensor | None:
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) else None


def _counted(distances: Tensor, mask: Tensor | None) -> Tensor:
    """The distances of tokens that are no padding."""
    return distances if mask is None or mask.shape != distances.shape else distances[mask.bool()]


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def _watched(model: nn.Module, blocks: Sequence[Block], seen: dict[str, Tensor]) -> Iterator[None]:
    """Put the distances of every block into `seen` while the model runs."""
    entered: dict[str, Tensor] = {}

    def enter(block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            name = block.enters[1]
            given = args[int(name)] if name.isdigit() else kwargs[name]
            entered[block.name] = given.clone()  # the block may write to it

        return hook

    def leave(block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            before = entered.pop(block.name)
            value = out[block.leaves[1]] if isinstance(out, tuple | list) else out
            after = value if block.unit == "block" else before + value.reshape(before.shape)
            seen[block.name] = _distances(before, after)

        return hook

    handles = []
    try:
        for block in blocks:
            source, sink = model.get_submodule(block.enters[0]), model.get_submodule(block.leaves[0])
            handles.append(source.register_forward_pre_hook(enter(block), with_kwargs=True))
            handles.append(sink.register_forward_hook(leave(block)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _distances(before: Tensor, after: Tensor) -> Tensor:
    if before.dim() > 3:
        before, after = before.flatten(1), after.flatten(1)
    after = after.reshape(before.shape)
    return 1 - nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
