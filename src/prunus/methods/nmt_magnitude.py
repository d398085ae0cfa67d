"""Magnitude pruning of sequence-to-sequence models with three rules for the threshold of each class of weights."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..masks import attach, find_sites, lowest
from .card import Card
from .magnitude import rescaled_dropout
from .masked import check_range, density_of, finished, part_of, stored, train
from .task import Outcome, Task

SCHEMES = ("blind", "uniform", "distribution")


def class_masks(
    weights: Mapping[str, Tensor], classes: Mapping[str, str], amount: float, scheme: str
) -> dict[str, Tensor]:
    """Which weights stay when `round(amount n)` of all n go.

    Args:
        weights: name -> weight.
        classes: name -> class of that weight.
        amount: share that goes, in [0, 1).
        scheme: "blind": the smallest |w| of all; "uniform": the same share of each class; "distribution": all below
            lambda times the standard deviation of their class (about its mean, over its entries), with the one lambda
            that gives the total.

    Returns:
        Name -> bool of its shape, True stays. Among equal magnitudes the one that stands first goes first.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError.of("scheme", scheme, SCHEMES)
    scores = {name: weight.detach().abs().float() for name, weight in weights.items()}
    members: dict[str, list[str]] = {}
    for name in weights:
        members.setdefault(classes[name], []).append(name)
    if scheme == "uniform":
        parts = [_smallest({name: scores[name] for name in names}, amount) for names in members.values()]
        return {name: part[name] for name in weights for part in parts if name in part}
    if scheme == "distribution":
        for names in members.values():
            deviation = torch.cat([weights[name].detach().float().flatten() for name in names]).std(correction=0)
            for name in names:
                scores[name] = scores[name] / deviation.clamp_min(torch.finfo(torch.float32).tiny)
    return _smallest(scores, amount)


def _smallest(scores: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    flat = torch.cat([score.flatten() for score in scores.values()])
    stays = ~lowest(flat[None], round(amount * len(flat)))[0]
    pieces = stays.split([score.numel() for score in scores.values()])
    return {name: piece.reshape(score.shape) for (name, score), piece in zip(scores.items(), pieces)}


def matrices_of(model: nn.Module, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Weights of linear, convolutional, recurrent and attention layers, and of embeddings, by name; tied ones once."""
    embeddings = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    ]
    known = [site.name for site in find_sites(model, None, keep)[0]]
    if not embeddings:
        return tuple(known)
    sites, _ = find_sites(model, [*known, *embeddings], keep)
    return tuple(site.name for site in sites)


def nmt_magnitude(
    task: Task,
    *,
    scheme: str = "blind",
    classes: Mapping[str, str] | None = None,
    dropout: float = 1.0,
    retrain: bool = True,
) -> Outcome:
    """Prune a trained sequence model once by magnitude, embeddings included, and train the rest on.

    Args:
        task: its model is trained; `amount` the share of all its matrices together; `training` is the retraining, with
            a learning rate below the first one's.
        scheme: "blind", "uniform" or "distribution", see `class_masks`.
        classes: glob pattern of weight names -> class, the first that fits; None makes each weight a class of its own.
        dropout: factor on all dropout probabilities while retraining.
        retrain: False stops after pruning.

    Source: See, Luong, Manning, "Compression of Neural Machine Translation Models via Pruning", CoNLL 2016,
    arXiv:1606.09274. Their lambda is found here by ranking |w| / sigma instead of by bisection, which is exact.
    """
    amount = task.wanted()
    check_range("nmt_magnitude", "dropout", dropout, 0.0, 1.0)
    names = matrices_of(task.model, task.keep)
    if not names:
        raise InputError("nmt_magnitude: the model has no matrices to prune")
    network = copy.deepcopy(task.model)
    weights = {name: stored(network, name) for name in names}
    masks = class_masks(weights, _classes(names, classes), amount, scheme)
    attach(network, masks)
    found: dict[str, Any] = {"density": density_of(masks)}
    found["densities"] = {name: float(mask.double().mean()) for name, mask in masks.items()}
    records: list[Mapping[str, Any]] = []
    if retrain:
        with rescaled_dropout(network, dropout):
            records = train(task, network, part_of(task.training, task.training.epochs))
    return finished(network, [found, *records])


def _classes(names: Sequence[str], given: Mapping[str, str] | None) -> dict[str, str]:
    if given is None:
        return {name: name for name in names}
    found = {}
    for name in names:
        fitting = [kind for pattern, kind in given.items() if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise InputError(f"nmt_magnitude: classes= has no pattern that fits {name!r}; add one, or keep= it")
        found[name] = fitting[0]
    return found


def _cards() -> tuple[Card, ...]:
    formulas = {
        "blind": "the smallest |w| of all classes together go",
        "uniform": "the smallest |w| of each class go, the same share of each",
        "distribution": "|w| < lambda sigma_c goes, with the lambda that gives the total",
    }
    return tuple(
        Card(
            id=f"nmt_class_{scheme}",
            title="Compression of Neural Machine Translation Models via Pruning",
            paper="See, Luong, Manning; CoNLL 2016; arXiv:1606.09274",
            level="weight",
            when="after training",
            rate="given",
            selection="criterion",
            needs=("labels", "training"),
            specification="standard",
            entry="method",
            how=f'prunus.methods.run("nmt_class_{scheme}", Task(model, x, train, amount=0.8, training=config))',
            formula=formula,
            cost="one ranking of the weights and the retraining",
            departures="each weight is a class of its own unless classes= says otherwise",
            run=partial(nmt_magnitude, scheme=scheme),
            aliases=("nmt_magnitude",) if scheme == "blind" else (),
        )
        for scheme, formula in formulas.items()
    )


CARDS = _cards()
