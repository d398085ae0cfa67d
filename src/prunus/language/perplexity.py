"""Perplexity of a causal language model, with everything that the number depends on beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..evaluation.state import eval_mode
from ..types import Measurement, Spread


@dataclass(frozen=True)
class Protocol:
    """How a perplexity is measured. Two numbers compare only if all of this is equal, and the tokens too.

    Attributes:
        corpus, split: names, for the reader.
        sequence_length: tokens in one window, with the start token.
        stride: tokens from one window to the next; None is the window's length: no overlap. Tokens that an earlier
            window scored are context only.
        start_token: put before each window; None puts none, and then the first token of a window that overlaps nothing
            is not scored.
        words: in the text, for the perplexity per word; None leaves that out.
    """

    corpus: str
    split: str
    sequence_length: int
    stride: int | None = None
    start_token: int | None = None
    words: int | None = None

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise InputError(f"Protocol: sequence_length={self.sequence_length} must be 2 or more")
        if self.stride is not None and not 1 <= self.stride <= self.room:
            raise InputError(f"Protocol: stride={self.stride} must be in [1, {self.room}], or tokens go unread")
        if self.words is not None and self.words < 1:
            raise InputError(f"Protocol: words={self.words} must be 1 or more")

    @property
    def room(self) -> int:
        """Tokens of the text in one window."""
        return self.sequence_length - (self.start_token is not None)

    def __str__(self) -> str:
        stride = self.stride or self.room
        start = "no start token" if self.start_token is None else f"start token {self.start_token}"
        return f"{self.corpus} {self.split}, windows of {self.sequence_length} tokens every {stride}, {start}"


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) are read, those from `scored` on are predicted."""

    start: int
    stop: int
    scored: int


def windows(tokens: int, protocol: Protocol) -> list[Window]:
    """The windows over so many tokens: each token is scored once at most.

    >>> [(w.start, w.stop, w.scored) for w in windows(7, Protocol("a", "test", 4, stride=2))]
    [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    """
    found: list[Window] = []
    stride, done, start = protocol.stride or protocol.room, 0, 0
    while done < tokens:
        stop = min(start + protocol.room, tokens)
        scored = max(done, start + (protocol.start_token is None))
        if scored < stop:
            found.append(Window(start, stop, scored))
        done, start = stop, start + stride
    return found


def perplexity(model: nn.Module, tokens: Tensor, protocol: Protocol, *, batch_size: int = 8) -> Measurement:
    """exp of the mean negative log-likelihood per scored token.

    Args:
        model: token ids (samples, length) -> logits, or an object with `logits`; measured in eval mode.
        tokens: (tokens,) ids of the whole text.
        protocol: windows and names.
        batch_size: windows at once; changes nothing but rounding.

    Returns:
        The perplexity per token, with a 95% interval over windows. Details: the protocol, tokens, those scored, the
        mean loss in nats, and `per_word` = exp(loss * tokens / words) where the words are known.

    Raises:
        InputError: fewer than two tokens, or losses that are not finite.
    """
    if tokens.dim() != 1 or len(tokens) < 2:
        raise InputError(f"perplexity: tokens must be one row of 2 or more ids, got shape {tuple(tokens.shape)}")
    found = windows(len(tokens), protocol)
    sums: list[tuple[float, int]] = []
    device = next(model.parameters()).device
    with torch.no_grad(), eval_mode(model):
        for group in _batches(found, batch_size):
            sums += _losses(model, tokens, group, protocol, device)
    scored = sum(count for _, count in sums)
    loss = sum(value for value, _ in sums) / scored
    if not math.isfinite(loss):
        raise InputError("perplexity: the model's losses are not finite: its weights or activations overflowed")
    details: dict[str, Any] = {
        **asdict(protocol),
        "stride": protocol.stride or protocol.room,
        "tokens": len(tokens),
        "scored": scored,
        "loss": loss,
        "per_word": None if protocol.words is None else _exp(loss * len(tokens) / protocol.words),
    }
    how = f"measured: exp of the mean loss of {scored:,} of {len(tokens):,} tokens; {protocol}"
    return Measurement("perplexity", _exp(loss), "per token", how, _spread(sums, loss), details)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _spread(sums: list[tuple[float, int]], loss: float) -> Spread | None:
    """Of the ratio of sums over windows."""
    n = len(sums)
    if n < 2:
        return None
    mean_count = sum(count for _, count in sums) / n
    variance = sum((value - loss * count) ** 2 for value, count in sums) / (n - 1)
    half = 1.96 * math.sqrt(variance / n) / mean_count
    return Spread(_exp(loss - half), _exp(loss + half), "95% interval over windows", n)


def _batches(found: list[Window], size: int) -> Iterator[list[Window]]:
    """Groups of windows of one length."""
    group: list[Window] = []
    for window in found:
        if group and (len(group) == size or group[0].stop - group[0].start != window.stop - window.start):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _losses(
    model: nn.Module, tokens: Tensor, group: list[Window], protocol: Protocol, device: torch.device
) -> list[tuple[float, int]]:
    """(sum of losses, scored tokens) of each window."""
    ids = torch.stack([tokens[window.start : window.stop] for window in group]).to(device)
    if protocol.start_token is not None:
        ids = torch.cat([ids.new_full((len(ids), 1), protocol.start_token), ids], 1)
    output = model(ids)
    logits = getattr(output, "logits", output)
    losses = functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none").double()
    first = 0 if protocol.start_token is not None else 1  # position of the first token that has a loss
    return [
        (float(row[window.scored - window.start - first :].sum()), window.stop - window.scored)
        for row, window in zip(losses, group)
    ]
