"""Masks from trained scores: what movement pruning and its relatives put on weights, and how scores become masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, PrunusError
from ..graph import blocks
from ..masks import find_sites, lowest, lowest_overall
from ..masks.weights import Site
from ..schedules import cubic
from ..training import StepInfo, TrainingConfig
from .masked import check_range, part_of, sites_of, train
from .task import Outcome, Task

LEAST = 0.005
"""Share of a matrix that stays at least where a threshold decides, as in the authors' code of block pruning."""


class Scores(nn.Module):
    """One trained number for each unit of a mask, 0 at first, and which units it keeps at the moment.

    In the forward pass a unit is there (1) or not (0); the gradient of a score is that of its factor, straight through,
    so that units that are away go on being scored and can come back.

    Args:
        units: number of scores.
        entries: weights that one unit masks, in all matrices that share it.
        scale: the scores are `scale` times the trained parameter, which gives them a learning rate of their own.
        like: of its device and type.
    """

    kept: Tensor

    def __init__(self, units: int, entries: int, scale: float, like: Tensor) -> None:
        super().__init__()
        self.entries, self.scale = entries, scale
        # One dimension, so that the optimiser's weight decay leaves it alone.
        self.raw = nn.Parameter(torch.zeros(units, dtype=like.dtype, device=like.device))
        self.register_buffer("kept", torch.ones(units, dtype=torch.bool, device=like.device))

    def values(self) -> Tensor:
        """(units,) scores; higher stays."""
        return self.scale * self.raw

    def factors(self) -> Tensor:
        """(units,) 0 or 1, with the gradient of the scores."""
        values = self.values()
        return self.kept.to(values.dtype) + (values - values.detach())

    def keep_lowest_out(self, count: int) -> None:
        """All units stay but the `count` of the lowest scores; among equal ones the first go."""
        self.kept.copy_(~lowest(self.values().detach()[None], count)[0])

    def keep_above(self, threshold: float) -> None:
        """Units whose sigmoid of the score is above the threshold stay, and at least `LEAST` of them."""
        values = self.values().detach()
        kept = torch.sigmoid(values) > threshold
        least = max(1, math.ceil(LEAST * values.numel()))
        self.kept.copy_(kept if int(kept.sum()) >= least else ~lowest(values[None], values.numel() - least)[0])


class Scored(nn.Module):
    """weight -> weight times the factors of its blocks.

    Args:
        scores: of the blocks, row-major; several weights may share them.
        shape: (out, in, *kernel) of the weight.
        block: entries of a block in each of these dimensions; the last blocks may be cut short.
        transposed: the weight is stored (in, out, *kernel).
    """

    def __init__(self, scores: Scores, shape: Sequence[int], block: Sequence[int], transposed: bool = False) -> None:
        super().__init__()
        self.scores, self.shape, self.block = scores, tuple(shape), tuple(block)
        self.grid = grid_of(shape, block)
        self.transposed = transposed
        if math.prod(self.grid) != scores.raw.numel():
            raise InputError(f"{scores.raw.numel()} scores do not fill the {self.grid} blocks of a weight {self.shape}")

    def spread(self, units: Tensor) -> Tensor:
        """(units,) to the shape in which the weight is stored."""
        full = units.reshape(self.grid)
        for dim, (size, step) in enumerate(zip(self.shape, self.block)):
            if step > 1:
                full = full.repeat_interleave(step, dim).narrow(dim, 0, size)
        return full.transpose(0, 1) if self.transposed else full

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return weight * self.spread(self.scores.factors())


def grid_of(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """Blocks in each dimension of a weight.

    >>> grid_of((5, 4), (2, 4))
    (3, 1)
    """
    return tuple(-(-size // step) for size, step in zip(shape, block))


def score_scale(config: TrainingConfig, score_lr: float) -> float:
    """The factor between scores and their parameter that makes `config.lr` of the parameter `score_lr` of the scores.

    The gradient of the parameter has the factor too: a step of SGD is lr * scale^2, one of AdamW (which knows no size
    of gradients) lr * scale.
    """
    share = score_lr / config.lr
    return share if config.optimizer == "adamw" else math.sqrt(share)


def sites_within(task: Task, method: str) -> tuple[Site, ...]:
    """The weights of the model's residual blocks (its transformer layers), or where it has none all that can be masked.

    Raises:
        InputError: there are none.
    """
    names = set(sites_of(task, method))
    try:
        inside = [block.name for block in blocks(task.model, task.example_inputs) if block.unit == "block"]
    except PrunusError:
        inside = []
    chosen = {name for name in names if any(name.startswith(f"{block}.") for block in inside)} or names
    return tuple(site for site in find_sites(task.model, None, task.keep)[0] if site.name in chosen)


def put_scores(network: nn.Module, site: Site, scores: Scores, block: Sequence[int]) -> Scored:
    """Mask one weight of a network by scores, in place."""
    mask = Scored(scores, site.shape, block, site.transposed)
    parametrize.register_parametrization(network.get_submodule(site.module), site.tensor, mask, unsafe=True)
    return mask


@dataclass(frozen=True)
class Selecting:
    """How scores become masks in the course of a training.

    Attributes:
        density: share of the weights that stays in the end (hard), or None: a threshold decides (soft).
        threshold: of the sigmoid of the scores, in the end.
        penalty: strength of the mean sigmoid of the scores at the final threshold (soft).
        warmup, cooldown: shares of the steps before the mask starts to close, and after it has reached its end.
        scope: "layer" ranks each matrix alone, "global" all together (hard).
        every: steps between two masks.
    """

    density: float | None
    threshold: float = 0.1
    penalty: float = 0.0
    warmup: float = 0.1
    cooldown: float = 0.2
    scope: str = "layer"
    every: int = 1

    def check(self, method: str) -> None:
        """Raise unless every number can be used."""
        check_range(method, "threshold", self.threshold, 0.0, 0.999)
        check_range(method, "penalty", self.penalty, 0.0, 1e9)
        check_range(method, "warmup", self.warmup, 0.0, 1.0)
        check_range(method, "cooldown", self.cooldown, 0.0, 1.0)
        if self.warmup + self.cooldown >= 1:
            raise InputError(
                f"{method}: warmup={self.warmup} and cooldown={self.cooldown} must leave some steps between"
            )
        if self.scope not in ("layer", "global"):
            raise InputError(f"{method}: scope={self.scope!r} must be 'layer' or 'global'")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"{method}: every={self.every!r} must be a whole number of 1 or more")

    def level(self, step: int, steps: int) -> float:
        """Sparsity (hard) or threshold (soft) after so many steps."""
        final = self.threshold if self.density is None else 1 - self.density
        start = round(self.warmup * steps)
        end = max(start + 1, steps - round(self.cooldown * steps))
        return cubic(final, start=start, end=end)(step)

    def close(self, scores: Sequence[Scores], level: float) -> None:
        """Set which units stay."""
        if self.density is None:
            for one in scores:
                one.keep_above(level)
            return
        if self.scope == "layer":
            counts = [one.raw.numel() - round((1 - level) * one.raw.numel()) for one in scores]
        else:
            entries = sum(one.raw.numel() * one.entries for one in scores)
            values, sizes = [one.values().detach() for one in scores], [one.entries for one in scores]
            counts = lowest_overall(values, entries - round((1 - level) * entries), sizes)
        for one, count in zip(scores, counts):
            one.keep_lowest_out(min(count, one.raw.numel() - 1))


def train_scores(
    task: Task, network: nn.Module, scores: Sequence[Scores], selecting: Selecting, **more: Any
) -> list[Mapping[str, Any]]:
    """Train weights and scores together in place while the masks close; the records of the epochs.

    Args:
        task: whose data and configuration are taken, of which the last weights are kept.
        network: wears `scores`.
        scores: each once.
        selecting: how masks follow.
        more: `teacher` as for `prunus.training.fit`, or a further `penalty`.
    """
    config = part_of(task.training, task.training.epochs, keep="last", ema=None, decay_norms_and_biases=False)
    further: Callable[[nn.Module], Tensor] | None = more.pop("penalty", None)
    now = {"level": selecting.level(0, 1)}

    def follow(info: StepInfo) -> None:
        if info.step % selecting.every == 0 or info.step == info.steps:
            now["level"] = selecting.level(info.step, info.steps)
            selecting.close(scores, now["level"])

    def penalty(model: nn.Module) -> Tensor:
        part = selecting.penalty * (now["level"] / selecting.threshold if selecting.threshold else 1.0)
        mean = torch.stack([torch.sigmoid(one.values()).mean() for one in scores]).mean()
        return part * mean if further is None else part * mean + further(model)

    soft = selecting.density is None and selecting.penalty
    return train(task, network, config, on_step=follow, penalty=penalty if soft else further, **more)


@contextmanager
def frozen_embeddings(network: nn.Module, frozen: bool) -> Iterator[None]:
    """Tables of embeddings do not learn inside."""
    tables = [m.weight for m in network.modules() if isinstance(m, nn.Embedding) and m.weight.requires_grad and frozen]
    for table in tables:
        table.requires_grad_(False)
    try:
        yield
    finally:
        for table in tables:
            table.requires_grad_(True)


def take_off(network: nn.Module, masks: Mapping[str, Scored]) -> dict[str, Tensor]:
    """Write zeros into the weights and take the scores off, in place; where the weights stay, by name."""
    stay = {}
    with torch.no_grad():
        for name, mask in masks.items():
            module, _, local = name.rpartition(".")
            holder = network.get_submodule(module)
            stay[name] = mask.spread(mask.scores.kept).expand_as(getattr(holder, local)).clone()
            parametrize.remove_parametrizations(holder, local, leave_parametrized=False)
            holder.get_parameter(local).masked_fill_(~stay[name], 0.0)
    return stay


def masked_model(
    network: nn.Module, masks: Mapping[str, Scored], history: Sequence[Mapping[str, Any]], notes: tuple[str, ...] = ()
) -> Outcome:
    """The outcome of a network that wears scores: they become zeros."""
    stay = take_off(network, masks)
    kept = {name: float(mask.float().mean()) for name, mask in stay.items()}
    share = sum(int(m.sum()) for m in stay.values()) / max(1, sum(m.numel() for m in stay.values()))
    cpu = {name: mask.cpu() for name, mask in stay.items()}
    return Outcome(network, masks=cpu, history=(*history, {"density": share, "layers": kept}), notes=notes)
