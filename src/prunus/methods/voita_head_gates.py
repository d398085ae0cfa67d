"""A random gate on every attention head with an L0 penalty: heads that are not worth it close (Voita et al.)."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import Tensor, nn

from ..graph import trace
from .card import Card
from .inner_axes import HEADS, readers_of
from .masked import check_range, part_of, shares, train
from .task import Outcome, Task
from .unit_gates import gate_scale, put_random_gates, without_gates


def voita_head_gates(
    task: Task,
    *,
    penalty: float = 0.05,
    start: float = 2.0,
    gate_lr: float | None = None,
    gated_epochs: float = 0.7,
    beta: float = 0.33,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Train a converged network with a hard concrete gate on each head; closed heads are removed, the rest trained on.

    Args:
        task: converged; `amount` is not read: how many heads go follows from `penalty`. `keep` names attention that
            should stay whole, such as "decoder.*" for gates in the encoder alone.
        penalty: lambda, times the expected number of open heads.
        start: log alpha of every gate at first; 2 is open with probability 0.94 at this temperature.
        gate_lr: learning rate of the gates, if it is another than the weights'.
        gated_epochs: share of the epochs with gates.
        beta: temperature.
        teacher: a network to be imitated; needs `Distillation` in the task's training.

    Returns:
        The smaller network, open gates multiplied into its output projections. A record has the gates of every layer.

    Source: Voita, Talbot, Moiseev, Sennrich, Titov, "Analyzing Multi-Head Self-Attention", ACL 2019, arXiv:1905.09418.
    """
    check_range("voita_head_gates", "penalty", penalty, 0.0, 1e9)
    check_range("voita_head_gates", "gated_epochs", gated_epochs, 0.0, 1.0)
    check_range("voita_head_gates", "beta", beta, 0.0, 10.0, open_low=True)
    network = copy.deepcopy(task.model)
    graph = trace(network, task.example_inputs, keep=task.keep)
    groups = []
    for name, reader in readers_of(network, task.example_inputs, graph, HEADS).items():
        group = graph.group(name)
        tensor = f"{reader.module}.{reader.tensor}"
        groups.append((group, [p for p in group.places if p.tensor == tensor and p.dim == reader.dim]))
    gated = put_random_gates(network, groups, beta, start, gate_scale(task.training, gate_lr))

    def expected(_: nn.Module) -> Tensor:
        return penalty * gated.expected_open()

    first, second = shares(task.training.epochs, [gated_epochs, 1 - gated_epochs])
    config = replace(part_of(task.training, first), keep="last", ema=None)
    history = train(task, network, config, penalty=expected, teacher=teacher)
    kept = gated.take_off()
    gates = {name: gate().detach().tolist() for name, gate in gated.gates.items()}
    record = {"gates": gates, "heads": {name: int(stay.sum()) for name, stay in kept.items()}}
    model, plan = without_gates(network, graph, kept, "voita_head_gates")
    more = train(task, model, part_of(task.training, second), teacher=teacher)
    return Outcome(model, plan=plan, history=(*history, record, *more))


CARD = Card(
    id="voita_head_gates",
    title="Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned",
    paper="Voita, Talbot, Moiseev, Sennrich, Titov; ACL 2019; arXiv:1905.09418",
    level="head",
    when="during training",
    rate="automatic",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("voita_head_gates", Task(model, x, train, training=config), penalty=0.05)',
    formula="Concat_h(g_h head_h) W_O, g hard concrete with beta 0.33; loss + lambda sum_h P(g_h > 0)",
    cost="one training with a random number for each head",
    departures="gates start open; a last share of the epochs trains the smaller network; every layer keeps one head",
    run=voita_head_gates,
)
