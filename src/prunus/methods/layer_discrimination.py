"""Residual blocks judged by how well what they put out tells the classes apart; those that add least are left out.

All read pooled features of what enters and what leaves each block, in one pass over the data, and remove blocks that
can be bypassed, which `prunus.prune(..., depth=)` proves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..graph import blocks
from ..statistics.state import preserved
from ..surgery import prune
from ..surgery.depth import left_out
from ..training.batches import Split
from ..types import Block
from .card import Card
from .steps import free_blocks, held_out, recalibrate, train_for
from .task import Outcome, Task

Pool = Callable[[Tensor], Tensor]
"""(samples, channels, ...) -> (samples, features)."""

# ------------------------------------------------------------------------------------------------ pure: discrimination


def vip(features: Tensor, targets: Tensor, components: int = 2) -> Tensor:
    """Variable importance in projection of partial least squares.

    VIP_j = sqrt(p sum_h s_h w_jh^2 / sum_h s_h), with unit weights w_h of component h and s_h = (t_h . t_h)(q_h . q_h),
    what the component explains of the targets. The mean of its squares is 1.

    Args:
        features: (samples, p); centred and scaled here, constant ones stay 0.
        targets: (samples, classes), one-hot; centred here.
        components: largest number; fewer where nothing is left to explain.

    Returns:
        (p,) float64.

    Source: Wold's VIP of PLS2, as used by Jordao, Lie, Schwartz, IEEE JSTSP 2020, doi 10.1109/JSTSP.2020.2975987.
    """
    x = features.double() - features.double().mean(0)
    deviation = x.std(0, correction=0)
    x = x / torch.where(deviation > 1e-12 * deviation.max().clamp_min(1e-300), deviation, torch.inf)
    y = targets.double() - targets.double().mean(0)
    if not x.any() or not y.any():
        return torch.ones(x.shape[1], dtype=torch.float64)
    weights, explained = [], []
    scale = float(torch.linalg.norm(x.T @ y))
    for _ in range(components):
        cross = x.T @ y
        if not weights or float(torch.linalg.norm(cross)) > 1e-9 * scale:
            w = torch.linalg.svd(cross, full_matrices=False)[0][:, 0]  # what NIPALS converges to
            t = x @ w
            squared = t @ t
            q = y.T @ t / squared
            x = x - torch.outer(t, x.T @ t / squared)
            y = y - torch.outer(t, q)
            weights.append(w)
            explained.append(squared * (q @ q))
    s = torch.stack(explained)
    return torch.sqrt(features.shape[1] * (torch.stack(weights).square() * s[:, None]).sum(0) / s.sum())


def imprinted_accuracy(features: Tensor, labels: Tensor, classes: int) -> float:
    """Accuracy of a classifier whose weights are the mean features of each class, scaled to unit length.

    Args:
        features: (samples, p). labels: (samples,) int64. classes: number of them.

    Returns:
        In [0, 1]; of equal scores the first class is taken.

    Raises:
        InputError: a class has no sample.

    Source: Elkerdawy, Elhoushi, Singh, Zhang, Ray, "One-Shot Layer-Wise Accuracy Approximation for Layer Pruning",
    ICIP 2020.
    """
    counts = torch.bincount(labels, minlength=classes)
    if not counts.all():
        raise InputError(f"imprinting needs samples of every class; class {int(counts.argmin())} has none")
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features.double())
    prototypes = F.normalize(sums / counts[:, None], dim=1)
    return float(((features.double() @ prototypes.T).argmax(1) == labels).double().mean())


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, decay: float = 1e-3) -> float:
    """Accuracy on `test` of a multinomial logistic regression that was fitted on `train`.

    Features are standardised; the fit is deterministic (L-BFGS from zero weights).

    Args:
        train, test: (features (samples, p), labels (samples,)).
        classes: number of them.
        decay: of the squared weights, half of it.
    """
    (x, y), (z, wanted) = train, test
    x, z = x.double(), z.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-9)
    x, z = (x - mean) / deviation, (z - mean) / deviation
    weight = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def logits(inputs: Tensor) -> Tensor:
        return F.linear(inputs, weight[:, :-1], weight[:, -1])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(x), y) + decay / 2 * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return float((logits(z).detach().argmax(1) == wanted).double().mean())


# --------------------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class Features:
    """Pooled features of every sample, on the CPU: what enters and what leaves each block, by its name."""

    entering: Mapping[str, Tensor]
    leaving: Mapping[str, Tensor]
    labels: Tensor


def collect_features(model: nn.Module, found: Sequence[Block], split: Split, pool: Pool, batch_size: int) -> Features:
    """One pass over a split, in eval mode; the model is left as it was."""
    entering: dict[str, list[Tensor]] = {block.name: [] for block in found}
    leaving: dict[str, list[Tensor]] = {block.name: [] for block in found}
    labels = []
    device = next(model.parameters()).device
    with preserved(model), torch.no_grad(), _watched(model.eval(), found, pool, entering, leaving):
        for inputs, target in split.batches(batch_size):
            model(inputs.to(device))
            labels.append(target)
    before, after = ({name: torch.cat(parts) for name, parts in values.items()} for values in (entering, leaving))
    return Features(before, after, torch.cat(labels))


@contextmanager
def _watched(
    model: nn.Module,
    found: Sequence[Block],
    pool: Pool,
    entering: Mapping[str, list[Tensor]],
    leaving: Mapping[str, list[Tensor]],
) -> Iterator[None]:
    def enter(block: Block, _module: nn.Module, args: Any, kwargs: Any) -> None:
        name = block.enters[1]
        given = args[int(name)] if name.isdigit() else kwargs[name]
        entering[block.name].append(pool(given).cpu())

    def leave(block: Block, _module: nn.Module, _args: Any, out: Any) -> None:
        value = out[block.leaves[1]] if isinstance(out, tuple | list) else out
        leaving[block.name].append(pool(value).cpu())

    handles = []
    try:
        for block in found:
            source, sink = model.get_submodule(block.enters[0]), model.get_submodule(block.leaves[0])
            handles.append(source.register_forward_pre_hook(partial(enter, block), with_kwargs=True))
            handles.append(sink.register_forward_hook(partial(leave, block)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def pooled_to(size: int) -> Pool:
    """Average pooling of feature maps to at most size x size places; tokens are averaged whole."""

    def pool(value: Tensor) -> Tensor:
        if value.dim() == 4:
            places = min(size, *value.shape[2:])
            return F.adaptive_avg_pool2d(value, places).flatten(1)
        return value.flatten(1, -2).mean(1) if value.dim() > 2 else value

    return pool


def pooled_to_length(value: Tensor, length: int = 512) -> Tensor:
    """About `length` features of every layer: d x d places, d = round(sqrt(length / channels)), at least 1.

    >>> [pooled_to_length(torch.zeros(1, c, 32, 32)).shape[1] for c in (1, 64, 512, 2048)]
    [529, 576, 512, 2048]
    """
    return pooled_to(max(1, round(math.sqrt(length / value.shape[1]))))(value)


# ---------------------------------------------------------------------------------------------------------- methods


def removable_blocks(task: Task, model: nn.Module, who: str) -> list[Block]:
    """Residual blocks that can be left out, in the order in which they run; those with kept modules are not.

    Raises:
        InputError: there is none.
    """
    found = free_blocks(task, model)
    if not found:
        raise InputError(f"{who}: the model has no residual block that can be bypassed")
    return found


def _shallower(task: Task, gone: Sequence[str], history: tuple[Mapping[str, Any], ...], note: str = "") -> Outcome:
    """Leave blocks out, recalibrate, fine-tune."""
    notes = (note,) if note else ()
    if not gone:
        return Outcome(prune(task.model, task.example_inputs, depth=0).model, history=history, notes=notes)
    pruned = prune(task.model, task.example_inputs, depth=list(gone), keep=task.keep)
    recalibrate(task, pruned.model)
    history += train_for(task, pruned.model, task.training.epochs)
    return Outcome(pruned.model, plan=pruned.plan, history=history, notes=notes)


def _count(task: Task, found: Sequence[Block]) -> int:
    return max(1, int(task.wanted() * len(found) + 1e-9))


def last_rising(scores: Sequence[float]) -> int:
    """Index of the first entry whose successor is not larger: up to there scores rise.

    >>> last_rising([0.1, 0.3, 0.4, 0.2, 0.9])
    2
    """
    for index, (score, after) in enumerate(zip(scores, scores[1:])):
        if after <= score:
            return index
    return len(scores) - 1


def discriminative_layer_pruning(task: Task, *, components: int = 4, pool: int = 8) -> Outcome:
    """Score blocks by the mean VIP of their output features; leave out those after the last that still gains.

    Args:
        task: `amount` is the share of removable blocks that goes, lowest scores first; None stops by rule: blocks are
            walked in order while the score rises, all removable ones after that go.
        components: of partial least squares.
        pool: feature maps are averaged to this many places in each direction.

    Source: Jordao, Lie, Schwartz, "Discriminative Layer Pruning for Convolutional Neural Networks", IEEE JSTSP 14(4),
    2020, doi 10.1109/JSTSP.2020.2975987. The paper cuts the network off and puts a new head on; here the blocks that
    can be bypassed go and the head stays.
    """
    found = removable_blocks(task, task.model, "discriminative_layer_pruning")
    seen = collect_features(task.model, found, task.train, pooled_to(pool), task.training.batch_size)
    targets = F.one_hot(seen.labels).double()
    scores = {block.name: float(vip(seen.leaving[block.name], targets, components).mean()) for block in found}
    names = list(scores)
    if task.amount is None:
        gone = names[last_rising(list(scores.values())) + 1 :]
    else:
        gone = sorted(names, key=lambda name: scores[name])[: _count(task, found)]
    note = "" if gone else "the score rises to the last block: none goes"
    return _shallower(task, gone, ({"mean_vip": scores},), note)


def layer_imprint(task: Task, *, length: int = 512) -> Outcome:
    """Leave out the blocks that add least to the accuracy of an imprinted classifier on their features.

    Args:
        task: `amount` is the share of removable blocks that goes; None takes those that add nothing or do harm.
        length: features of each layer, about.

    Source: Elkerdawy, Elhoushi, Singh, Zhang, Ray, "One-Shot Layer-Wise Accuracy Approximation for Layer Pruning",
    ICIP 2020.
    """
    found = removable_blocks(task, task.model, "layer_imprint")
    pool = partial(pooled_to_length, length=length)
    seen = collect_features(task.model, found, task.train, pool, task.training.batch_size)
    classes = int(seen.labels.max()) + 1
    gains = {
        block.name: imprinted_accuracy(seen.leaving[block.name], seen.labels, classes)
        - imprinted_accuracy(seen.entering[block.name], seen.labels, classes)
        for block in found
    }
    ranked = sorted(gains, key=lambda name: gains[name])
    gone = [name for name in ranked if gains[name] <= 0] if task.amount is None else ranked[: _count(task, found)]
    return _shallower(task, gone, ({"gain": gains},), "" if gone else "every block adds accuracy: none goes")


def block_dbp(task: Task, *, one_shot: bool = False) -> Outcome:
    """Leave out the blocks whose output tells classes apart hardly better than their input.

    A block's gain is the held-out accuracy of a logistic regression on its pooled output less that on its pooled input.

    Args:
        task: `amount` is the share of removable blocks that goes.
        one_shot: score once, instead of anew after each removal.

    Source: W. Wang, Zhao, Chen, Hu, Cai, Liu, "DBP: Discrimination Based Block-Level Pruning for Deep Model
    Acceleration", 2019, arXiv:1912.10178; how discrimination is measured is our choice.
    """
    found = removable_blocks(task, task.model, "block_dbp")
    count = _count(task, found)
    gone: list[str] = []
    history: list[Mapping[str, Any]] = []
    while len(gone) < count:
        left = [block for block in found if block.name not in gone]
        gains = _probe_gains(task, _with_bypassed(task, gone), left)
        history.append({"gain": gains})
        ranked = sorted(gains, key=lambda name: gains[name])
        gone += ranked[: count if one_shot else 1]
    return _shallower(task, gone, tuple(history))


def _with_bypassed(task: Task, gone: Sequence[str]) -> nn.Module:
    """A copy of the model in which the names of the other blocks stay, and these give back their input."""
    found = {block.name: block for block in blocks(task.model, task.example_inputs)}
    removals = [removal for name in gone for removal in found[name].removals]
    return left_out(task.model, removals, next(task.model.parameters()).dtype)


def _probe_gains(task: Task, model: nn.Module, left: Sequence[Block]) -> dict[str, float]:
    size = task.training.batch_size
    fitted = collect_features(model, left, task.train, pooled_to(1), size)
    judged = collect_features(model, left, held_out(task), pooled_to(1), size)
    classes = int(fitted.labels.max()) + 1

    def probed(train: Tensor, test: Tensor) -> float:
        return linear_probe((train, fitted.labels), (test, judged.labels), classes)

    return {
        block.name: probed(fitted.leaving[block.name], judged.leaving[block.name])
        - probed(fitted.entering[block.name], judged.entering[block.name])
        for block in left
    }


_card = partial(
    Card,
    level="layer",
    when="after training",
    selection="criterion",
    needs=("activations", "labels", "training"),
    entry="method",
)

CARDS = (
    _card(
        id="discriminative_layer_pruning",
        title="Discriminative Layer Pruning for Convolutional Neural Networks",
        paper="Jordao, Lie, Schwartz; IEEE JSTSP 14(4), 2020; doi 10.1109/JSTSP.2020.2975987",
        rate="automatic",
        specification="verified",
        how='prunus.methods.run("discriminative_layer_pruning", Task(model, x, train, validation, training=config))',
        formula="mean over features of VIP = sqrt(p sum_h s_h w_jh^2 / sum_h s_h) of PLS; stop where it rises no more",
        cost="one pass, a PLS per block whose features are held in memory, one fine-tuning",
        departures="blocks that can be bypassed go and the head stays, instead of cutting off and a new head",
        run=discriminative_layer_pruning,
        aliases=("layer_pls",),
    ),
    _card(
        id="layer_imprint",
        title="One-Shot Layer-Wise Accuracy Approximation for Layer Pruning",
        paper="Elkerdawy, Elhoushi, Singh, Zhang, Ray; ICIP 2020",
        rate="given",
        specification="verified",
        how='prunus.methods.run("layer_imprint", Task(model, x, train, validation, amount=0.3, training=config))',
        formula="accuracy of argmax <e(x), mean class embedding> after a block less that before it; least gain goes",
        cost="one pass whose pooled features are held in memory, one fine-tuning",
        departures="the published rule of selection is not known in detail: smallest gain of a residual block",
        run=layer_imprint,
    ),
    _card(
        id="block_dbp",
        title="DBP: Discrimination Based Block-Level Pruning for Deep Model Acceleration",
        paper="W. Wang, Zhao, Chen, Hu, Cai, Liu; 2019; arXiv:1912.10178",
        rate="given",
        specification="reconstructed",
        how='prunus.methods.run("block_dbp", Task(model, x, train, validation, amount=0.3, training=config))',
        formula="held-out accuracy of logistic regression on what leaves a block less that on what enters; least goes",
        cost="for every removal two passes and two regressions per block; one fine-tuning",
        departures="only the abstract is followed: the measure of discrimination is our choice",
        run=block_dbp,
    ),
)
