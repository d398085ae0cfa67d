"""Stochastic pruning after sparsity regularisation, with weights stored as random measurements."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..masks import attach
from .card import Card
from .masked import check_range, finished, part_of, shares, sites_of, stored, train
from .proximal import proximal_step
from .task import Outcome, Task


def keep_probabilities(weight: Tensor, density: float) -> Tensor:
    """min(1, kappa |w| / mean|w|), with the kappa for which they add up to `density` times the number of weights.

    Weights that are zero have probability zero; where fewer than the wanted number are not zero, all of those stay.

    >>> keep_probabilities(torch.tensor([4.0, 1.0, 1.0, 2.0]), 0.5).tolist()
    [1.0, 0.25, 0.25, 0.5]
    """
    size = weight.detach().abs().double()
    wanted = density * size.numel()
    if not size.any() or int((size > 0).sum()) <= wanted:
        return (size > 0).to(torch.float64)
    ratio = size / size.mean()
    low, high = 0.0, float(size.numel())
    while (ratio * high).clamp(max=1).sum() < wanted:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (ratio * middle).clamp(max=1).sum() < wanted else (low, middle)
    return (ratio * high).clamp(max=1)


def sampled(
    weight: Tensor, density: float, generator: torch.Generator, *, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """A random mask by `keep_probabilities`, and the weight under it; with `unbiased` each entry that stays is divided
    by its probability, so that the expectation is the weight."""
    probabilities = keep_probabilities(weight, density)
    mask = torch.rand(weight.shape, generator=generator, dtype=torch.float64) < probabilities.cpu()
    mask = mask.to(weight.device)
    kept = weight.detach() * mask
    if unbiased:
        kept = torch.where(mask, kept / probabilities.clamp_min(1e-300).to(kept), kept)
    return mask, kept


# ------------------------------------------------------------------------------------------------------------- coding


def measurements(length: int, entries: int, factor: float = 2.0) -> int:
    """How many random measurements a chunk of `length` with so many entries takes: ceil(factor k ln(n / k)).

    >>> measurements(256, 8), measurements(256, 0), measurements(256, 256)
    (56, 0, 0)
    """
    return math.ceil(factor * entries * math.log(length / entries)) if entries else 0


def sensing_matrix(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) of independent normal numbers of variance 1 / rows, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(max(rows, 1))


def matching_pursuit(matrix: Tensor, measured: Tensor, entries: int) -> Tensor:
    """The sparse x with matrix @ x = measured: greedily the column that explains most of what is left, and a least
    squares fit of all columns so far.

    Source: Pati, Rezaiifar, Krishnaprasad, "Orthogonal matching pursuit", Asilomar 1993.
    """
    x = measured.new_zeros(matrix.shape[1])
    support: list[int] = []
    rest = measured
    for _ in range(entries):
        if float(rest.norm()) <= 1e-12 * float(measured.norm()):
            break
        gains = (matrix.T @ rest).abs()
        gains[support] = -1
        support.append(int(gains.argmax()))
        fitted = torch.linalg.lstsq(matrix[:, support], measured[:, None]).solution[:, 0]
        rest = measured - matrix[:, support] @ fitted
    if support:
        x[support] = fitted
    return x


@dataclass(frozen=True)
class Chunk:
    """A stored piece of a weight.

    `form` is "measurements" (values are y = Phi x, Phi from the seed) or "bitmap" (values are the entries, `bits` says
    where they are).
    """

    form: str
    length: int
    entries: int
    values: Tensor
    seed: int = 0
    bits: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Values of four bytes; a bit for each place of a bitmap."""
        return 4 * len(self.values) + (-(-self.length // 8) if self.form == "bitmap" else 0)


def encode_chunk(values: Tensor, seed: int, *, factor: float = 2.0, tolerance: float = 1e-6) -> Chunk:
    """Measurements if they take fewer bytes than a bitmap and decode within `tolerance` of the norm, else a bitmap."""
    bits = values != 0
    entries = int(bits.sum())
    bitmap = Chunk("bitmap", len(values), entries, values[bits].clone(), bits=bits)
    count = measurements(len(values), entries, factor)
    if not entries or 4 * count >= bitmap.nbytes or count < entries:
        return bitmap
    matrix = sensing_matrix(count, len(values), seed)
    chunk = Chunk("measurements", len(values), entries, matrix @ values.double(), seed)
    error = (decode_chunk(chunk) - values.double()).norm() / values.double().norm()
    return chunk if float(error) <= tolerance else bitmap


def decode_chunk(chunk: Chunk) -> Tensor:
    """(length,) values of a chunk, in double precision from measurements."""
    if chunk.form == "bitmap":
        assert chunk.bits is not None
        values = chunk.values.new_zeros(chunk.length)
        values[chunk.bits] = chunk.values
        return values
    matrix = sensing_matrix(len(chunk.values), chunk.length, chunk.seed)
    return matching_pursuit(matrix, chunk.values, chunk.entries)


def encode(weight: Tensor, *, chunk: int = 256, seed: int = 0, factor: float = 2.0) -> list[Chunk]:
    """A weight in pieces of `chunk` entries, each in its smaller form."""
    pieces = weight.detach().cpu().flatten().split(chunk)
    return [encode_chunk(piece, seed + number, factor=factor) for number, piece in enumerate(pieces)]


# ------------------------------------------------------------------------------------------------------------- method


def stochastic_cs_pruning(
    task: Task,
    *,
    penalty: float = 1e-5,
    penalised_epochs: float = 0.5,
    unbiased: bool = False,
    chunk: int = 256,
    factor: float = 2.0,
) -> Outcome:
    """Fine-tune with an L1 penalty, keep weights at random with a probability by magnitude, train those, store them as
    random measurements where that is smaller.

    Args:
        task: its model is trained; `amount` is the share that goes (None: 0.9), on average.
        penalty: of the sum of |w|, by proximal steps.
        penalised_epochs: share of the epochs before pruning; the rest trains what stays.
        unbiased: divide what stays by its probability.
        chunk: entries that are coded together.
        factor: measurements of a chunk with k of n entries: factor k ln(n / k).

    Returns:
        The network; the history says how many chunks are stored in which form, and the bytes. Coding changes nothing
        in the network.

    Source: reconstructed from the abstract of Islam, Alawad, "Stochastically Pruning Large Language Models Using
    Sparsity Regularization and Compressive Sensing", GLSVLSI 2023, and a survey; everything beyond it is our choice.
    """
    check_range("stochastic_cs_pruning", "penalty", penalty, 0.0, 1e6)
    check_range("stochastic_cs_pruning", "penalised_epochs", penalised_epochs, 0.0, 1.0)
    if chunk < 8 or not factor > 0:
        raise InputError(f"stochastic_cs_pruning: chunk={chunk} must be 8 or more and factor={factor} above 0")
    density = 0.1 if task.amount is None else 1 - task.amount
    names = sites_of(task, "stochastic_cs_pruning")
    network = copy.deepcopy(task.model)
    weights = [stored(network, name) for name in names]
    first, second = shares(task.training.epochs, [penalised_epochs, 1 - penalised_epochs])

    def shrink(info: Any) -> None:
        if penalty:
            proximal_step(info.optimizer, weights, penalty)

    records = train(task, network, part_of(task.training, first, keep="last", ema=None), on_step=shrink)
    generator = torch.Generator().manual_seed(task.seed)
    masks: dict[str, Tensor] = {}
    for name, weight in zip(names, weights):
        masks[name], kept = sampled(weight, density, generator, unbiased=unbiased)
        with torch.no_grad():
            weight.copy_(kept)
    attach(network, masks)
    records += train(task, network, part_of(task.training, second))
    outcome = finished(network, records)
    sizes = _sizes({name: stored(network, name) for name in names}, chunk, task.seed, factor)
    return Outcome(outcome.model, masks=outcome.masks, history=(*outcome.history, sizes))


def _sizes(weights: Mapping[str, Tensor], chunk: int, seed: int, factor: float) -> dict[str, Any]:
    chunks = [one for weight in weights.values() for one in encode(weight, chunk=chunk, seed=seed, factor=factor)]
    return {
        "bytes": sum(one.nbytes for one in chunks),
        "dense_bytes": 4 * sum(weight.numel() for weight in weights.values()),
        "measured_chunks": sum(one.form == "measurements" for one in chunks),
        "bitmap_chunks": sum(one.form == "bitmap" for one in chunks),
    }


CARD = Card(
    id="stochastic_cs_pruning",
    title="Stochastically Pruning Large Language Models Using Sparsity Regularization and Compressive Sensing",
    paper="Islam, Alawad; GLSVLSI 2023",
    level="weight",
    when="after training",
    rate="given",
    selection="regulariser",
    needs=("labels", "training"),
    specification="reconstructed",
    entry="method",
    how='prunus.methods.run("stochastic_cs_pruning", Task(model, x, train, amount=0.9, training=config))',
    formula="L1 training; w stays with probability min(1, kappa |w| / mean |w|); stored as y = Phi x or as a bitmap",
    cost="one training; a matching pursuit per chunk that is measured",
    departures="all but the idea is our choice; random measurements seldom take fewer bytes than a bitmap",
    evidence="8x8 digits, 80% gone, equal training, three seeds: 0.913; uniformly random masks 0.864, magnitude 0.942; "
    "at 90% 0.667, 0.575 and 0.931; no chunk took fewer bytes as measurements",
    run=stochastic_cs_pruning,
)
