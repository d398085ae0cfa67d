"""Iteratively pruned ensembles: several networks lose their idlest filters step by step and then vote."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..graph import trace
from ..surgery import prune
from .card import Card
from .rounds import accuracy_of, check_count, check_share, shares, some_batches, train_on
from .task import Outcome, Task

VOTES = ("majority", "average", "weighted", "stacking")


class Ensemble(nn.Module):
    """Several classifiers with one answer: the logarithm of their joint class probabilities.

    "majority" counts votes (ties go by the average probability), "average" and "weighted" average probabilities,
    "stacking" feeds all of them to a linear layer.

    Args:
        members: networks from the same inputs to (N, classes) logits.
        vote: one of `VOTES`.
        weights: one for each member, for "weighted".
        stack: (members * classes) -> classes, for "stacking".
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        vote: str = "weighted",
        weights: Sequence[float] | None = None,
        stack: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        if vote not in VOTES:
            raise UnknownNameError.of("vote", vote, VOTES)
        if not members:
            raise InputError("Ensemble: members= must name at least one network")
        given = [1.0] * len(members) if weights is None else list(weights)
        if len(given) != len(members) or min(given) < 0 or not sum(given) > 0:
            raise InputError(f"Ensemble: weights={weights} must be one number >= 0 for each of {len(members)} members")
        if (vote == "stacking") != (stack is not None):
            raise InputError("Ensemble: vote='stacking' needs stack=, and nothing else does")
        self.members = nn.ModuleList(members)
        self.vote = vote
        self.stack = stack
        self.register_buffer("weights", torch.tensor(given) / sum(given))

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, classes) log-probabilities; for "majority" of shares of votes."""
        probabilities = torch.stack([member(inputs).softmax(1) for member in self.members])
        if self.stack is not None:
            return self.stack(probabilities.transpose(0, 1).flatten(1)).log_softmax(1)
        if len(self.members) == 1:
            joint = probabilities[0]
        elif self.vote == "majority":
            votes = nn.functional.one_hot(probabilities.argmax(2), probabilities.shape[2]).to(probabilities)
            joint = 0.99 * votes.mean(0) + 0.01 * probabilities.mean(0) / len(self.members)
        elif self.vote == "average":
            joint = probabilities.mean(0)
        else:
            joint = (self.weights[:, None, None] * probabilities).sum(0)
        return joint.clamp_min(torch.finfo(joint.dtype).tiny).log()


def iterative_pruned_ensemble(
    task: Task,
    *,
    others: Sequence[nn.Module] = (),
    step: float = 0.02,
    vote: str = "weighted",
    batches: int = 4,
    batch_size: int = 128,
) -> Outcome:
    """From each network remove the filters that are zero most often, a few at a time, retraining after each step; keep
    the best step by validation; let the networks vote.

    Args:
        task: its model and `others` are trained classifiers of the same inputs and classes; `amount` is the share of
            each layer's filters that is removed in the end (None: 0.5). `training` is divided over the steps.
        others: further members.
        step: share of the dense filters that goes per step.
        vote: "majority", "average", "weighted" (by validation accuracy) or "stacking" (logistic regression on the
            members' probabilities for the training split).
        batches, batch_size: that the share of zeros is counted on.

    Returns:
        The ensemble as one network; the history has the accuracy of each member at each step, and its parameters.

    Source: Rajaraman, Siegelman, Alderson, Folio, Folio, Antani, "Iteratively Pruned Deep Learning Ensembles for
    COVID-19 Detection in Chest X-Rays", IEEE Access 2020. The criterion (average percentage of zeros) and the steps are
    our reading.
    """
    if vote not in VOTES:
        raise UnknownNameError.of("vote", vote, VOTES)
    check_share("iterative_pruned_ensemble", step=step)
    check_count("iterative_pruned_ensemble", batches=batches, batch_size=batch_size)
    amount = 0.5 if task.amount is None else task.amount
    data = some_batches(task, batches, batch_size)
    rounds = max(1, round(amount / step))
    members, scores, history = [], [], []
    for number, model in enumerate((task.model, *others), 1):
        best, score, records = _pruned(task, model, [amount * k / rounds for k in range(1, rounds + 1)], data)
        members.append(best)
        scores.append(score)
        history.append({"member": number, "accuracy": score, "parameters": _size(best), "steps": records})
    weights = scores if vote == "weighted" and sum(scores) > 0 else None
    ensemble = Ensemble(members, vote, weights, _stacked(task, members) if vote == "stacking" else None)
    history.append({"accuracy": accuracy_of(ensemble, task), "parameters": _size(ensemble)})
    return Outcome(ensemble, history=tuple(history))


def _pruned(
    task: Task, model: nn.Module, ratios: Sequence[float], data: list[tuple[Tensor, Tensor]]
) -> tuple[nn.Module, float, list[Mapping[str, Any]]]:
    """The best of the steps, its accuracy, one record for each."""
    network = copy.deepcopy(model)
    best, score = network, -1.0
    dense = _units(task, model)
    records: list[Mapping[str, Any]] = []
    for ratio, epochs in zip(ratios, shares(task.training.epochs, len(ratios))):
        left = _units(task, network)
        # What is left of the dense filters tells how many more go.
        fewer = {name: max(0.0, 1 - round(dense[name] * (1 - ratio)) / size) for name, size in left.items()}
        network = _without(task, network, fewer, data)
        train_on(network, task, epochs)
        accuracy = accuracy_of(network, task)
        records.append({"ratio": ratio, "accuracy": accuracy, "parameters": _size(network)})
        if accuracy >= score:  # of equally good ones the smallest
            best, score = copy.deepcopy(network), accuracy
    return best, score, records


def _units(task: Task, model: nn.Module) -> dict[str, int]:
    return {group.name: group.size for group in trace(model, task.example_inputs, keep=task.keep).groups}


def _without(
    task: Task, network: nn.Module, ratios: Mapping[str, float], data: list[tuple[Tensor, Tensor]]
) -> nn.Module:
    if not any(ratios.values()):
        return network
    return prune(
        network, task.example_inputs, ratio=dict(ratios), criterion="apoz", data=data, fallback="l2_norm",
        keep=task.keep,
    ).model  # fmt: skip


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _stacked(task: Task, members: Sequence[nn.Module]) -> nn.Linear:
    """Logistic regression from the members' probabilities to the labels of the training split."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = [], []
    modes = [member.training for member in members]
    with torch.no_grad():
        for member in members:
            member.eval()
        for inputs, target in task.train.batches(256):
            rows.append(torch.cat([member(inputs).softmax(1) for member in members], 1))
            labels.append(target)
    for member, mode in zip(members, modes):
        member.train(mode)
    features, wanted = torch.cat(rows), torch.cat(labels)
    fitted = LogisticRegression(max_iter=1000, random_state=task.seed).fit(features.numpy(), wanted.numpy())
    classes = features.shape[1] // len(members)
    layer = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-1e4)  # a class without an example is never the answer
        seen = torch.as_tensor(fitted.classes_)
        weight, bias = torch.as_tensor(fitted.coef_).float(), torch.as_tensor(fitted.intercept_).float()
        if len(weight) == 1:  # two classes: one row, of the second against the first
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        layer.weight[seen] = weight
        layer.bias[seen] = bias
    return layer


CARD = Card(
    id="iterative_pruned_ensemble",
    title="Iteratively Pruned Deep Learning Ensembles for COVID-19 Detection in Chest X-Rays",
    paper="Rajaraman, Siegelman, Alderson, Folio, Folio, Antani; IEEE Access 8; 2020",
    level="filter",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("activations", "labels", "training"),
    specification="abstract",
    entry="method",
    how='prunus.methods.run("iterative_pruned_ensemble", Task(model, x, train, validation, training=config))',
    formula="2% of a layer's filters, those with most zeros, go per step, to 50%; the best steps vote",
    cost="one training per member, divided over the steps; a pass over a few batches per step",
    departures="the best step is the smallest one of the best accuracy; stacking learns on the training split",
    run=iterative_pruned_ensemble,
)
