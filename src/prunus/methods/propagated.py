"""Methods that choose units by what flows back from the output, or by what their absence does: NISP, LRP, CURATING."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

from torch import nn

from ..allocation import plan
from ..criteria import Criterion, criterion_of, score
from ..errors import InputError
from ..graph import trace
from ..statistics import final_responses, infinite_feature_selection, loss_change, propagated_importance, relevance
from ..surgery import apply
from ..types import Graph, Plan, Scores, Statistics
from .card import Card
from .rounds import History, check_count, cut_by, shares, some_batches, train_on
from .task import Outcome, Task


def nisp(
    task: Task, *, batches: int = 8, batch_size: int = 64, alpha: float = 0.5, layer: str | None = None
) -> Outcome:
    """Score the classifier's inputs by infinite feature selection, propagate them back, prune every layer at once.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        batches, batch_size: whose final responses are compared.
        alpha: weight of the spread against the independence of features.
        layer: the classifier; None is the last layer with weights that runs.

    Source: Yu et al., CVPR 2018, arXiv:1711.05908.
    """
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    responses = final_responses(task.model, graph, some_batches(task, batches, batch_size), layer)
    final = infinite_feature_selection(responses, alpha)
    statistics = propagated_importance(task.model, graph, final, example_inputs=task.example_inputs, layer=layer)
    return _pruned(task, "nisp", statistics, "group")


def lrp(task: Task, *, batches: int = 2, batch_size: int = 64, scope: str = "global") -> Outcome:
    """Prune the units with the least relevance for the right classes.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        batches, batch_size: of reference examples.
        scope: "global", or "group" for the same ratio everywhere.

    Source: Yeom et al., Pattern Recognition 2021, arXiv:1912.08881.
    """
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    statistics = relevance(task.model, graph, some_batches(task, batches, batch_size))
    return _pruned(task, "lrp", statistics, scope)


def curating(
    task: Task, *, batches: int = 1, batch_size: int = 128, mu: float = 1.0, nu: float = 1.0, dimensions: int = 8
) -> Outcome:
    """Keep units that are salient, strong and unlike each other.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        batches, batch_size: that are run once per unit to see what the loss does without it.
        mu, nu, dimensions: as for the criterion `curating`.

    Source: Pattanayak, Nag, Mittal, Journal of Systems Architecture 116:102031, 2021 (reconstructed).
    """
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    statistics = loss_change(task.model, graph, some_batches(task, batches, batch_size), loss=task.loss)
    chosen = criterion_of("curating", mu=mu, nu=nu, dimensions=dimensions)
    return _pruned(task, chosen, statistics, "group")


def _pruned(task: Task, criterion: str | Criterion, statistics: Statistics, scope: str) -> Outcome:
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    if not graph.groups:
        raise InputError(f"{criterion_of(criterion).name}: nothing in the model can be pruned")
    scores = score(graph, criterion, statistics, model=task.model, fallback="l2_norm")
    model, made = cut_by(task, task.model, graph, scores, scope)
    return Outcome(model, plan=made, history=tuple(train_on(model, task, task.training.epochs)))


def feature_relevance_gradual(task: Task, *, rounds: int = 4, batches: int = 4, batch_size: int = 64) -> Outcome:
    """Train, and in between remove, round by round, the channels that matter to no class.

    The score of a channel is the largest of its shares in the decisions for the single classes (z+ rule). The epochs
    are spent in rounds + 1 parts; after each but the last the share of removed channels grows by an equal step.

    Args:
        task: its model is trained or not; `amount` of the channels go in all, of every layer alike.
        rounds: of removal.
        batches, batch_size: of examples for the scores.

    Source: reconstructed from a survey's sentence on Aketi, Roy, Raghunathan, Roy, "Gradual Channel Pruning while
    Training using Feature Relevance Scores for Convolutional Neural Networks", IEEE Access 2020.
    """
    check_count("feature_relevance_gradual", rounds=rounds)
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    sizes = {g.name: g.size for g in trace(network, task.example_inputs, keep=task.keep).groups}
    history: History = []
    made: Plan | None = None
    parts = shares(task.training.epochs, rounds + 1)
    for number, epochs in enumerate(parts):
        history += train_on(network, task, epochs)
        if number == rounds:
            break
        graph = trace(network, task.example_inputs, keep=task.keep)
        found = relevance(network, graph, some_batches(task, batches, batch_size), per_class=True)
        most = Statistics(
            {"relevance": {key: value.amax(0) for key, value in found.values["relevance"].items()}},
            found.batches,
            found.examples,
        )
        scores = score(graph, "lrp", most, model=network, fallback="l2_norm")
        share = amount * (number + 1) / rounds
        ratios = {g.name: _still(share, sizes.get(g.name, g.size), g.size) for g in graph.groups}
        network, made = _step(network, graph, scores, ratios)
    return Outcome(network, plan=made, history=tuple(history))


def _still(share: float, original: int, now: int) -> float:
    """The ratio of the units that are left which brings the removed share of the original number to `share`."""
    gone = int(original * share + 1e-9)
    return max(0.0, (gone - (original - now) + 1e-6) / now)


def _step(network: nn.Module, graph: Graph, scores: Scores, ratios: dict[str, float]) -> tuple[nn.Module, Plan]:
    made = replace(plan(graph, scores, ratio=ratios), criterion="feature_relevance_gradual")
    return (apply(network, made) if made.cuts else network), made


_card = partial(Card, when="after training", rate="given", entry="method")


def _how(name: str) -> str:
    return f'prunus.methods.run("{name}", Task(model, x, train, validation, amount=0.5, training=config))'


CARDS = (
    _card(
        id="nisp",
        title="NISP: Pruning Networks using Neuron Importance Score Propagation",
        paper="Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis; CVPR 2018; arXiv:1711.05908",
        level="channel",
        selection="criterion",
        needs=("activations",),
        specification="standard",
        how=_how("nisp"),
        formula="s_l = |W_{l+1}|^T s_{l+1}, from Inf-FS scores of the inputs of the classifier",
        cost="one pass for the final responses, an inverse of (features x features), one backward pass",
        departures="maximum pooling passes importance to one position of a window; GELU and the like pass as ReLU does",
        run=nisp,
    ),
    _card(
        id="lrp",
        title="Pruning by explaining: A novel criterion for deep neural network pruning",
        paper="Yeom et al.; Pattern Recognition 2021; arXiv:1912.08881",
        level="filter",
        selection="criterion",
        needs=("activations", "gradients", "labels"),
        specification="standard",
        how=_how("lrp"),
        formula="R_j = sum_k (a_j w_jk)^+ / sum_j' (a_j' w_j'k)^+ R_k, summed over positions, mean over examples",
        cost="one forward and backward pass over the reference examples, twice the layers",
        departures="every example starts with relevance 1; one shot, where the paper iterates",
        run=lrp,
    ),
    _card(
        id="curating",
        title="CURATING: A multi-objective based pruning technique for CNNs",
        paper="Pattanayak, Nag, Mittal; Journal of Systems Architecture 116:102031, 2021",
        level="filter",
        selection="criterion",
        needs=("labels",),
        specification="abstract",
        how=_how("curating"),
        formula="greedy: z(L(W_o=0) - L(W)) + mu z(|W_o|_1) + nu min_{kept j} |E_o - E_j|, E of JS divergences",
        cost="one forward pass per unit",
        departures="how saliency, norm and diversity are put together is our reconstruction",
        run=curating,
    ),
    _card(
        id="feature_relevance_gradual",
        title="Gradual Channel Pruning while Training using Feature Relevance Scores",
        paper="Aketi, Roy, Raghunathan, Roy; IEEE Access 2020",
        level="channel",
        when="during training",
        selection="schedule",
        needs=("gradients", "labels", "training"),
        specification="reconstructed",
        how=_how("feature_relevance_gradual"),
        formula="max over classes of the mean relevance (z+ rule), equal steps between parts of the training",
        cost="one training, which becomes cheaper, and a few batches of relevance per round",
        departures="rule, maximum over classes and steps are our choices; each part has its own learning rate schedule",
        run=feature_relevance_gradual,
    ),
)
