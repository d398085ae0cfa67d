"""Thresholds that grow during training, for recurrent networks: of single weights or of blocks, with group lasso."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ..errors import InputError
from ..masks import attach, count_of, lowest, masks_of
from .card import Card
from .masked import (
    check_range,
    density_of,
    finished,
    holder_of,
    part_of,
    shares,
    sites_of,
    steps_per_epoch,
    stored,
    train,
    trained_with,
)  # fmt: skip
from .proximal import step_size
from .task import Outcome, Task

Shape = tuple[int, int]


@dataclass(frozen=True)
class Ramp:
    """The threshold at each iteration: slope `theta` per `every` iterations at first, the steeper `phi` later.

    Attributes:
        start, ramp, end: iterations at which it begins to grow, becomes steeper, and stays as it is.
        every: iterations between two updates of the masks.
        theta, phi: growth of the threshold per update, in units of the weights.

    >>> ramp = Ramp.reaching(0.05, start=100, ramp=300, end=900, every=10)
    >>> [float(f"{ramp(i):.4g}") for i in (99, 100, 299, 300, 899, 5000)]
    [0.0, 4.545e-05, 0.009091, 0.009205, 0.05005, 0.05005]
    """

    start: int
    ramp: int
    end: int
    every: int
    theta: float
    phi: float

    @classmethod
    def reaching(cls, quantile: float, *, start: int, ramp: int, end: int, every: int, slope: float = 1.5) -> Ramp:
        """The one that comes to `quantile` at `end`; `slope` is phi / theta.

        With slope 1.5 it is theta = 2 q every / (2 (ramp - start) + 3 (end - ramp)).
        """
        theta = quantile * every / ((ramp - start) + slope * (end - ramp))
        return cls(start, ramp, end, every, theta, slope * theta)

    def __call__(self, iteration: int) -> float:
        """The threshold at an iteration, counted from 0."""
        i = min(iteration, self.end - 1)
        if i < self.start:
            return 0.0
        if i < self.ramp:
            return self.theta * (i - self.start + 1) / self.every
        return (self.theta * (self.ramp - self.start + 1) + self.phi * (i - self.ramp + 1)) / self.every


# ------------------------------------------------------------------------------------------------------------- blocks


def _tiles(values: Tensor, block: Shape) -> Tensor:
    """(out, in) -> (row blocks, rows of one, column blocks, columns of one), with zeros beyond the border."""
    padded = F.pad(values, (0, -values.shape[1] % block[1], 0, -values.shape[0] % block[0]))
    return padded.reshape(-1, block[0], padded.shape[1] // block[1], block[1])


def _spread(blocks: Tensor, block: Shape, shape: torch.Size) -> Tensor:
    """One value for each block -> one for each of its entries."""
    wide = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


def block_maxima(weight: Tensor, block: Shape) -> Tensor:
    """(row blocks, column blocks): the largest |w| of each block; those at the border are smaller.

    >>> block_maxima(torch.tensor([[1.0, -2.0, 5.0], [0.0, 1.0, 3.0]]), (2, 2)).tolist()
    [[2.0, 5.0]]
    """
    return _tiles(weight.abs(), block).amax((1, 3))


def block_sizes(shape: torch.Size | Shape, block: Shape) -> Tensor:
    """(row blocks, column blocks): entries of each block."""
    return _tiles(torch.ones(tuple(shape)), block).sum((1, 3))


def block_norms(weight: Tensor, block: Shape) -> Tensor:
    """(row blocks, column blocks): L2 norm of each block."""
    return _tiles(weight.square(), block).sum((1, 3)).sqrt()


def above(weight: Tensor, threshold: float, block: Shape = (1, 1)) -> Tensor:
    """Which entries stay: those of blocks whose largest |w| reaches threshold * entries^(1/4), bool of its shape.

    Blocks of one entry have the plain threshold; larger ones a higher one, since their maxima are larger.
    """
    matrix = weight.flatten(1)
    wanted = threshold * block_sizes(matrix.shape, block).to(matrix.device) ** 0.25
    return _spread(block_maxima(matrix, block) >= wanted, block, matrix.shape).reshape(weight.shape)


@torch.no_grad()
def shrink_blocks(weight: Tensor, amount: float | Tensor, block: Shape) -> None:
    """The proximal step of `amount` times the sum of the blocks' L2 norms, in place: small blocks become zero.

    `amount` may be one for each entry (of an adaptive optimiser); a block then takes the mean of its own.
    """
    matrix = weight.flatten(1)
    norms = block_norms(matrix, block)
    if isinstance(amount, Tensor) and amount.numel() > 1:
        sizes = block_sizes(matrix.shape, block).to(matrix.device)
        amount = _tiles(amount.flatten(1), block).sum((1, 3)) / sizes
    factor = (1 - amount / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)
    weight.mul_(_spread(factor, block, matrix.shape).reshape(weight.shape))


# ------------------------------------------------------------------------------------------------------------ methods


def narang_gradual(
    task: Task,
    *,
    percentile: float | None = None,
    reference: nn.Module | None = None,
    start: float | None = None,
    ramp: float = 0.25,
    end: float = 0.5,
    every: int | None = None,
    slope: float = 1.5,
) -> Outcome:
    """Train while the smallest weights go below a threshold that grows; then train the rest.

    Recurrent layers have one threshold, all others together another. It is chosen so that it ends at a percentile of
    the |w| that a dense network has. The sparsity that comes out is not that percentile; the history has it.

    Args:
        task: its model is freshly initialised; `training` is all of the training.
        percentile: of |w|; None is the task's amount, or 0.9.
        reference: a trained dense network with the same kinds of layers, whose weights give the percentile. None
            trains one first, as the task says.
        start: share of the steps before the first threshold; None is one epoch, at most an eighth.
        ramp, end: shares of the steps where the slope becomes steeper, and where the threshold stays.
        every: steps between two updates; None is 100, or a twentieth of the time between start and end if that is less.
        slope: of the second part, times the first; 1.5 to 2 in the paper.

    Source: Narang, Elsen, Diamos, Sengupta, "Exploring Sparsity in Recurrent Neural Networks", ICLR 2017,
    arXiv:1704.05119.
    """
    check_range("narang_gradual", "slope", slope, 1.0, 10.0)
    timing = _timing(task, "narang_gradual", start, ramp, end, every)
    ramps = _ramps(task, "narang_gradual", percentile, reference, partial(Ramp.reaching, slope=slope, **timing))
    return _trained(task, ramps, (1, 1), 0.0)


def block_sparse_rnn(
    task: Task,
    *,
    block: Shape = (4, 4),
    penalty: float = 0.0,
    percentile: float | None = None,
    reference: nn.Module | None = None,
    start: float | None = None,
    ramp: float = 0.25,
    end: float = 0.5,
    every: int | None = None,
) -> Outcome:
    """`narang_gradual` for blocks of neighbouring weights, with group lasso over the same blocks if `penalty` says so.

    A block goes when its largest |w| falls below the threshold times the fourth root of its entries. Blocks at the
    border of a matrix are as small as they are.

    Args:
        task, reference, start, ramp, end, every: as for `narang_gradual`.
        percentile: of the |w| of single weights; None is the task's amount, or 0.8 (0.9 for blocks of one weight). Of
            normal weights in blocks of 4x4, 0.8 keeps a block in six, 0.9 one in sixty.
        block: (outputs, inputs).
        penalty: lambda, times the sum of the L2 norms of all blocks, from the first step on; 0 is block pruning alone.

    Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, arXiv:1711.02782. The penalty
    acts by proximal steps.
    """
    _check_block("block_sparse_rnn", block)
    check_range("block_sparse_rnn", "penalty", penalty, 0.0, 1e6)
    timing = _timing(task, "block_sparse_rnn", start, ramp, end, every)
    if percentile is None and task.amount is None and block != (1, 1):
        percentile = 0.8
    ramps = _ramps(task, "block_sparse_rnn", percentile, reference, partial(Ramp.reaching, **timing))
    return _trained(task, ramps, block, penalty)


def rnn_group_lasso(
    task: Task, *, block: Shape = (4, 4), penalty: float = 1e-3, penalised_epochs: float = 0.7
) -> Outcome:
    """Train with group lasso over blocks of weights; blocks that became zero go, and the rest trains on without it.

    Args:
        task: fresh or trained. With an amount exactly that share of every layer's blocks goes, the smallest norms
            first.
        block: (outputs, inputs).
        penalty: lambda, times the sum of the L2 norms of all blocks.
        penalised_epochs: share of the epochs with the penalty.

    Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, arXiv:1711.02782.
    """
    _check_block("rnn_group_lasso", block)
    check_range("rnn_group_lasso", "penalty", penalty, 0.0, 1e6)
    check_range("rnn_group_lasso", "penalised_epochs", penalised_epochs, 0.0, 1.0)
    names = sites_of(task, "rnn_group_lasso")
    network = copy.deepcopy(task.model)
    first, second = shares(task.training.epochs, [penalised_epochs, 1 - penalised_epochs])
    records = train(
        task, network, part_of(task.training, first, keep="last", ema=None),
        on_step=_shrinking({name: stored(network, name) for name in names}, penalty, block),
    )  # fmt: skip
    masks = {name: _kept(stored(network, name), block, task.amount) for name in names}
    return trained_with(task, network, masks, second, [*records, {"density_found": density_of(masks)}])


def _kept(weight: Tensor, block: Shape, amount: float | None) -> Tensor:
    """Blocks that are not zero, or all but the share `amount` with the smallest norms, as a mask."""
    matrix = weight.detach().flatten(1)
    norms = block_norms(matrix, block)
    stays = norms > 0
    if amount is not None:
        flat = norms.reshape(1, -1)
        stays = ~lowest(flat, count_of(amount, flat.shape[1])).reshape(norms.shape)
    return _spread(stays, block, matrix.shape).reshape(weight.shape)


def _shrinking(weights: Mapping[str, Tensor], penalty: float, block: Shape) -> Callable[[Any], None]:
    def step(info: Any) -> None:
        for weight in weights.values() if penalty else ():
            shrink_blocks(weight, penalty * step_size(info.optimizer, weight), block)

    return step


def _trained(task: Task, ramps: Mapping[str, Ramp], block: Shape, penalty: float) -> Outcome:
    """Train with a threshold for every weight."""
    network = copy.deepcopy(task.model)
    attach(network, {name: torch.ones_like(stored(network, name), dtype=torch.bool) for name in ramps})
    worn = masks_of(network)
    weights = {name: stored(network, name) for name in ramps}
    shrink = _shrinking(weights, penalty, block)
    grown: list[Mapping[str, Any]] = []

    def step(info: Any) -> None:
        shrink(info)
        due = [name for name, ramp in ramps.items() if info.step % ramp.every == 0 and ramp(info.step) > 0]
        for name in due:
            worn[name] &= above(weights[name].detach(), ramps[name](info.step), block)
        if due:
            grown.append({"step": info.step, "density": density_of(worn)})

    records = train(task, network, part_of(task.training, task.training.epochs, keep="last", ema=None), on_step=step)
    empty = [name for name, mask in worn.items() if not mask.any()]
    notes = (f"nothing is left of {', '.join(empty)}",) if empty else ()
    thresholds = {"thresholds": {name: ramp(ramp.end) for name, ramp in ramps.items()}}
    return finished(network, [thresholds, *grown, *records], notes)


def _timing(task: Task, method: str, start: float | None, ramp: float, end: float, every: int | None) -> dict[str, int]:
    """Iterations of start, ramp, end and between two updates."""
    per_epoch = steps_per_epoch(task)
    steps = task.training.epochs * per_epoch
    first = min(per_epoch, steps // 8) if start is None else int(start * steps)
    found = {"start": first, "ramp": int(ramp * steps), "end": int(end * steps)}
    if not 0 <= found["start"] < found["ramp"] < found["end"] <= steps:
        raise InputError(
            f"{method}: start={start}, ramp={ramp} and end={end} of {steps} steps must ascend, each at least a step "
            "after the other: give more epochs, or shares such as start=0.1, ramp=0.25, end=0.5"
        )
    every = max(1, min(100, (found["end"] - found["start"]) // 20)) if every is None else every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"{method}: every={every!r} must be a whole number of steps, 1 or more")
    return {**found, "every": every}


def _ramps(
    task: Task, method: str, percentile: float | None, reference: nn.Module | None, ramp: Callable[[float], Ramp]
) -> dict[str, Ramp]:
    """The threshold of every weight: that of its kind of layer."""
    percentile = (0.9 if task.amount is None else task.amount) if percentile is None else percentile
    check_range(method, "percentile", percentile, 0.0, 1.0)
    names = sites_of(task, method)
    if reference is None:
        reference = copy.deepcopy(task.model)
        train(task, reference, task.training)
    values: dict[bool, list[Tensor]] = {}
    for name in names:
        values.setdefault(_recurrent(task.model, name), []).append(stored(reference, name).detach().abs().flatten())
    ramps = {kind: ramp(_quantile(torch.cat(found), percentile)) for kind, found in values.items()}
    return {name: ramps[_recurrent(task.model, name)] for name in names}


def _recurrent(model: nn.Module, name: str) -> bool:
    return isinstance(holder_of(model, name)[0], (RNNBase, RNNCellBase))


def _quantile(values: Tensor, share: float) -> float:
    """As torch.quantile, which refuses large tensors."""
    return float(values.kthvalue(max(1, round(share * len(values)))).values)


def _check_block(method: str, block: Shape) -> None:
    if len(block) != 2 or any(isinstance(edge, bool) or not isinstance(edge, int) or edge < 1 for edge in block):
        raise InputError(f"{method}: block={block!r} must be two edges of 1 or more, such as (4, 4)")


_card = partial(
    Card,
    level="block",
    when="during training",
    rate="automatic",
    selection="schedule",
    needs=("labels", "training"),
    specification="abstract",
    entry="method",
    paper="Narang, Undersander, Diamos; 2017; arXiv:1711.02782",
    title="Block-Sparse Recurrent Neural Networks",
)

CARDS = (
    _card(
        id="narang_gradual",
        title="Exploring Sparsity in Recurrent Neural Networks",
        paper="Narang, Elsen, Diamos, Sengupta; ICLR 2017; arXiv:1704.05119",
        level="weight",
        specification="standard",
        how='prunus.methods.run("narang_gradual", Task(model, x, train, validation, training=config))',
        formula="|w| < e goes; e grows by theta per update, later by 1.5 theta, to a percentile of the dense |w|",
        cost="one training, and one of the dense network unless reference= is given",
        departures="weights never come back; the sparsity that comes out is not exactly the percentile",
        run=narang_gradual,
        aliases=("rnn_gradual_threshold",),
    ),
    _card(
        id="rnn_block_threshold",
        how='prunus.methods.run("rnn_block_threshold", Task(model, x, train, training=config), block=(4, 4))',
        formula="a block goes when max |w| < e_i (its entries)^(1/4), e_i as in narang_gradual",
        cost="one training, and one of the dense network unless reference= is given",
        departures="the fourth root is known from later work that quotes the paper; the percentile is 0.8, not 0.9",
        run=block_sparse_rnn,
        aliases=("block_sparse_rnn",),
    ),
    _card(
        id="rnn_group_lasso",
        selection="regulariser",
        how='prunus.methods.run("rnn_group_lasso", Task(model, x, train, amount=0.5, training=config), penalty=1e-3)',
        formula="loss + lambda sum_g ||w_g||_2 over blocks; blocks that are zero go",
        cost="one training",
        departures="proximal steps instead of sub-gradients; the last epochs train without the penalty",
        run=rnn_group_lasso,
    ),
    _card(
        id="rnn_group_lasso_block",
        selection="regulariser",
        how='prunus.methods.run("rnn_group_lasso_block", Task(model, x, train, validation, training=config))',
        formula="loss + lambda sum_g ||w_g||_2 over blocks; a block goes when max |w| < e_i (its entries)^(1/4)",
        cost="one training, and one of the dense network unless reference= is given",
        departures="proximal steps instead of sub-gradients; the penalty stays to the end",
        run=partial(block_sparse_rnn, penalty=1e-4),
    ),
)
