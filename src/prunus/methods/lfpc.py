"""Learning filter pruning criteria: which criterion suits a layer is learned from the loss of the pruned network."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..allocation import plan
from ..criteria import Criterion, criterion_of, score
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..statistics.ablation import readers_of
from ..types import Graph, Scores
from .card import Card
from .rounds import check_count, cut_by, kept_units, train_on
from .task import Outcome, Task


def gumbel_weights(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """softmax((log softmax(logits) + noise) / temperature) over the last dimension: one-hot as the temperature falls.

    >>> gumbel_weights(torch.tensor([0.0, 1.0]), torch.zeros(2), 1e-3)
    tensor([0., 1.])
    """
    return ((logits.log_softmax(-1) + noise) / temperature).softmax(-1)


def gated(graph: Graph, parameters: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that read units, with each unit's share multiplied by its gate: 0 is as if it were not there.

    Args:
        graph: of the network.
        parameters: by name.
        gates: group name -> (units,) factors; gradients flow to them.
    """
    found: dict[str, Tensor] = {}
    for name, factors in gates.items():
        for place in readers_of(graph.group(name)):
            if place.tensor not in parameters:
                continue
            tensor = found.get(place.tensor, parameters[place.tensor])
            positions = torch.from_numpy(unit_positions(place.axis, name)).to(tensor.device)
            spread = torch.ones(place.axis.size, dtype=tensor.dtype, device=tensor.device)
            spread = spread.index_copy(
                0, positions.reshape(-1), factors.to(tensor).repeat_interleave(positions.shape[1])
            )
            shape = [1] * tensor.dim()
            shape[place.dim] = -1
            found[place.tensor] = tensor * spread.reshape(shape)
    return found


def lfpc(
    task: Task,
    *,
    criteria: Sequence[str | Criterion] = ("l1_norm", "l2_norm", "geometric_median"),
    steps: int = 60,
    rate: float = 0.1,
    temperatures: tuple[float, float] = (1.0, 0.1),
    batch_size: int = 128,
) -> Outcome:
    """Learn one criterion per layer, prune each layer with its own, fine-tune.

    Every candidate criterion marks the same number of units to keep. The network is run with each layer's maps as the
    mixture of those of the candidates, with Gumbel-softmax weights, and the logits of all layers descend together
    on the loss of the validation split; the network's weights stand still.

    Args:
        task: `amount` of every layer goes; needs `validation`. `training.epochs` of fine-tuning follow, none if 0.
        criteria: candidates, of the weights only.
        steps: of Adam on the logits. rate: its learning rate.
        temperatures: at the first and the last step, falling geometrically.
        batch_size: of the validation batches.

    Returns:
        The pruned network; the first record of the history has the choice and the logits of every layer.

    Source: He, Ding, Liu, Zhu, Zhang, Yang, "Learning Filter Pruning Criteria for Deep Convolutional Neural Networks
    Acceleration", CVPR 2020.
    """
    check_count("lfpc", steps=steps)
    if task.validation is None:
        raise InputError("lfpc: the criteria are learned on Task(validation=...), a split that is not trained on")
    if not criteria:
        raise InputError("lfpc: criteria is empty; name at least one, such as 'l2_norm'")
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    if not graph.groups:
        raise InputError("lfpc: nothing in the model can be pruned")
    amount = task.wanted()
    scores = [score(graph, one, model=task.model, fallback="l2_norm") for one in criteria]
    marks = [kept_units(graph, plan(graph, found, ratio=amount)) for found in scores]
    masks = {group.name: torch.stack([mark[group.name] for mark in marks]).double() for group in graph.groups}
    logits = _learned(task, graph, masks, (steps, rate, *temperatures, batch_size))
    best = {name: int(value.argmax()) for name, value in logits.items()}
    chosen = Scores("lfpc", {name: scores[index].values[name] for name, index in best.items()})
    model, made = cut_by(task, task.model, graph, chosen)
    record = {
        "criteria": {name: criterion_of(criteria[index]).name for name, index in best.items()},
        "logits": {name: value.tolist() for name, value in logits.items()},
    }
    return Outcome(model, plan=made, history=(record, *train_on(model, task, task.training.epochs)))


def _learned(
    task: Task, graph: Graph, masks: Mapping[str, Tensor], settings: tuple[int, float, float, float, int]
) -> dict[str, Tensor]:
    steps, rate, first, last, batch_size = settings
    assert task.validation is not None
    network = copy.deepcopy(task.model).eval().requires_grad_(False)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    device = next(iter(parameters.values())).device
    logits = {name: torch.zeros(len(mask), requires_grad=True) for name, mask in masks.items()}
    adam = torch.optim.Adam(logits.values(), lr=rate)
    generator = torch.Generator().manual_seed(task.seed)
    split = task.validation
    batches = (
        batch
        for epoch in itertools.count()
        for batch in split.batches(batch_size, shuffle=True, seed=task.seed, epoch=epoch)
    )
    for step in range(steps):
        temperature = first * (last / first) ** (step / max(steps - 1, 1))
        gates = {}
        for name, value in logits.items():
            noise = -torch.empty(len(value)).exponential_(generator=generator).log()
            gates[name] = gumbel_weights(value, noise, temperature).double() @ masks[name]
        inputs, target = next(batches)
        weights = gated(graph, parameters, gates)
        output = torch.func.functional_call(network, weights, (inputs.to(device),), tie_weights=True)
        loss = (task.loss or nn.functional.cross_entropy)(output, target.to(device))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {name: value.detach() for name, value in logits.items()}


CARD = Card(
    id="lfpc",
    title="Learning Filter Pruning Criteria for Deep Convolutional Neural Networks Acceleration",
    paper="He, Ding, Liu, Zhu, Zhang, Yang; CVPR 2020",
    level="filter",
    when="after training",
    rate="given",
    selection="criterion",
    needs=("labels",),
    specification="standard",
    entry="method",
    how='prunus.methods.run("lfpc", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="F = sum_s p_s conv(x; M_s W), p = Gumbel-softmax(alpha); alpha descends on the validation loss; argmax",
    cost="60 forward and backward passes over validation batches",
    departures="maps are mixed where the next layer reads them, so that a mask is the pruned network also behind "
    "norms; schedule of the temperature and learning rate are ours; the weights are fixed",
    run=lfpc,
)
