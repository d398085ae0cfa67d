"""How much a block changes what passes through it."""

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
        batches: (inputs, target) pairs, dicts that are passed to the model whole, or inputs.
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
        with _watched(model, [block for block in blocks if not block.why_not], totals):
            for batch in batches:
                _call(model, tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch))
                count += 1
                if count == max_batches:
                    break
    if not count:
        raise InputError("batches: there are none; give at least one batch of inputs")
    return {name: total / max(number, 1.0) for name, (total, number) in totals.items()}


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def _watched(model: nn.Module, blocks: Sequence[Block], totals: Mapping[str, list[float]]) -> Iterator[None]:
    """Add up the distances of every block while the model runs."""
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
            distances = _distances(before, after)
            totals[block.name][0] += float(distances.sum())
            totals[block.name][1] += distances.numel()

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
