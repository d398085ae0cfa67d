"""A transformer that lies in memory as a chain of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation.state import eval_mode
from .allocation import Rule, allocate
from .block import BlockOptions, BlockResult
from .chain import Chain, HeldStates
from .stack import calls_of, find_blocks

TOKENS_AT_ONCE = 4096
"""Most tokens in one chunk, where the caller gives one tensor."""


def chain_of(model: nn.Module, batches: Sequence[Tensor], combine: Callable[[Tensor], Tensor] | None = None) -> Chain:
    """The blocks of a model, with the hidden states that enter the first one.

    Args:
        model: in evaluation mode; a block that is changed is changed in it.
        batches: token ids, all of one shape, on the model's device.
        combine: makes of a sum over this process's tokens that over all processes.

    Raises:
        InputError: the model is no chain of blocks.
    """
    names = find_blocks(model, batches[0][:1] if len(batches[0]) == 1 else batches[0][:2])
    calls, hidden = calls_of(model, names, batches)
    states = HeldStates(torch.cat(hidden))
    return Chain(
        names,
        calls,
        lambda index: model.get_submodule(names[index]),
        states,
        states.restart,
        len(batches[0]),
        str(hidden[0].device),
        combine,
    )


def prune_blocks(
    model: nn.Module,
    tokens: Tensor | Iterable[Tensor],
    options: BlockOptions | Sequence[BlockOptions],
    *,
    rule: Rule | None = None,
    batch: int | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
) -> tuple[BlockResult, ...]:
    """Prune the blocks of a model in memory, in place, by the same path as `stream`.

    Args:
        model: a model of transformers, or any module that takes token ids and hands hidden states (batch, length,
            hidden) through one list of blocks.
        tokens: (samples, length) calibration ids without padding, or batches of them, all of one shape.
        options: for all blocks, or one for each.
        rule: gives blocks or weights sparsities of their own.
        batch: samples at a time, where tokens are one tensor; None takes what is about 4096 tokens.
        combine: makes of a sum over this process's tokens that over all processes.

    Returns:
        What became of each block.

    Raises:
        InputError: a wrong argument, or a model that is no chain of blocks.
    """
    with eval_mode(model), torch.no_grad():
        chain = chain_of(model, batches_of(tokens, model, batch), combine)
        chosen = allocate(chain, per_block(options, len(chain)), rule)
        return tuple(chain.prune(index, one)[1] for index, one in enumerate(chosen))


def per_block(options: BlockOptions | Sequence[BlockOptions], blocks: int) -> list[BlockOptions]:
    """One for each block.

    Raises:
        InputError, UnknownNameError: another number of them, or a wrong one.
    """
    chosen = [options] * blocks if isinstance(options, BlockOptions) else list(options)
    if len(chosen) != blocks:
        raise InputError(f"options: {len(chosen)} given for {blocks} blocks; give one for all, or one for each")
    for one in {id(option): option for option in chosen}.values():
        one.target  # noqa: B018 - reading it checks it
    return chosen


def batches_of(tokens: Tensor | Iterable[Tensor], model: nn.Module, size: int | None = None) -> list[Tensor]:
    """Token ids in batches of one shape, on the model's device.

    Raises:
        InputError: they have other shapes.
    """
    if isinstance(tokens, Tensor):
        if tokens.dim() != 2 or not tokens.numel():
            raise InputError(f"tokens must be (samples, length) token ids, got shape {tuple(tokens.shape)}")
        if size is None:
            most = max(1, min(len(tokens), TOKENS_AT_ONCE // tokens.shape[1]))
            size = next(size for size in range(most, 0, -1) if len(tokens) % size == 0)
        tokens = tokens.split(size)
    batches = list(tokens)
    shapes = {tuple(batch.shape) for batch in batches}
    if len(shapes) != 1:
        raise InputError(f"tokens: batches must have one shape, got {sorted(shapes)}: cut the text to one length")
    first = next(model.parameters())
    return [batch.to(first.device) for batch in batches]
