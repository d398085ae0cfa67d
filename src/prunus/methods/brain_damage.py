"""Second-order pruning of single weights: Optimal Brain Damage, and Optimal Brain Surgeon layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..masks import attach, count_of, masks_of
from ..statistics import hessian_diagonal
from ..surgery.sparsify import sparsify
from .card import Card
from .masked import check_range, density_of, finished, holder_of, part_of, shares, sites_of, train, trained_with
from .task import Outcome, Task


def obd(
    task: Task,
    *,
    rounds: int = 3,
    form: str = "fisher",
    batches: int = 4,
    batch_size: int = 128,
    probes: int = 8,
    scope: str = "global",
) -> Outcome:
    """Remove the weights with the smallest h w^2 / 2, train those that are left, and again.

    Args:
        task: its model is trained, near a minimum of the loss; `training` is divided over the rounds.
        rounds: the density after round k is (1 - amount)^(k / rounds).
        form: of the diagonal of the Hessian, measured anew in each round: "fisher", "backpropagated" (as in the paper),
            "hutchinson" or "exact", see `prunus.statistics.hessian_diagonal`.
        batches, batch_size: of training data that it is measured on.
        probes: of "hutchinson", per batch.
        scope: as for `prunus.sparsify`; the saliencies of all layers are comparable.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
    """
    if rounds < 1 or batches < 1:
        raise InputError(f"obd: rounds={rounds} and batches={batches} must be 1 or more")
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    history: list[Mapping[str, Any]] = []
    for k, epochs in enumerate(shares(task.training.epochs, [1.0] * rounds), 1):
        data = list(islice(task.train.batches(batch_size, shuffle=True, seed=task.seed + k), batches))
        statistics = hessian_diagonal(network, data, form=form, loss=task.loss, probes=probes, seed=task.seed + k)
        sparsify(
            network, sparsity=1 - (1 - amount) ** (k / rounds), criterion="obd", statistics=statistics, scope=scope,
            keep=task.keep, inplace=True,
        )  # fmt: skip
        records = train(task, network, part_of(task.training, epochs))
        history.append({"round": k, "density": density_of(masks_of(network)), "epochs": records})
    return finished(network, history)


# ------------------------------------------------------------------------------------------------------------ surgeon


def surgeon(row: Tensor, inverse: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Remove weights one by one, each time the one whose loss is least, and move the others to make up for it.

    Args:
        row: (n,) weights.
        inverse: (n, n), inverse Hessian of the loss with respect to them.
        count: how many go, 0 to n.

    Returns:
        The new weights, with zeros, and a (count,) float tensor of the losses w_q^2 / (2 [H^-1]_qq) of the steps, which
        add up to the growth of a quadratic loss.

    Raises:
        ShapeError: `inverse` does not fit.

    Source: Hassibi, Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992.

    >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> weights, losses = surgeon(torch.tensor([1.0, 0.5]), torch.linalg.inv(hessian), 1)
    >>> weights.tolist(), losses.tolist()
    ([1.25, 0.0], [0.1875...])
    """
    if inverse.shape != (len(row), len(row)):
        raise ShapeError(f"surgeon: inverse has shape {tuple(inverse.shape)} for {len(row)} weights")
    weights, left = row.double().clone(), inverse.double().clone()
    gone = torch.zeros(len(row), dtype=torch.bool)
    losses = []
    for _ in range(count):
        diagonal = left.diagonal()
        saliency = weights.square() / (2 * diagonal)
        q = int(saliency.masked_fill(gone, torch.inf).argmin())
        losses.append(saliency[q])
        weights -= weights[q] / diagonal[q] * left[:, q]
        left -= torch.outer(left[:, q], left[q]) / diagonal[q]
        gone[q] = True
        weights[gone] = 0.0
        left[gone] = 0.0
        left[:, gone] = 0.0
        left[gone, gone] = 1.0  # only so that nothing is divided by zero
    return weights.to(row.dtype), torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def inverse_second_moment(inputs: Tensor, damping: float) -> Tensor:
    """Inverse of damping I + mean of x x^T, by one rank-one update per example.

    Args:
        inputs: (examples, features).
        damping: > 0, in units of the squared features.

    Source: Hassibi, Stork, NIPS 1992: H^-1 <- H^-1 - (H^-1 x x^T H^-1) / (P + x^T H^-1 x), P examples in all.
    """
    number, features = inputs.shape
    inverse = torch.eye(features, dtype=torch.float64) / damping
    for x in inputs.double():
        step = inverse @ x
        inverse -= torch.outer(step, step) / (number + x @ step)
    return inverse


def obs(task: Task, *, batches: int = 4, batch_size: int = 128, damping: float = 1e-4) -> Outcome:
    """Optimal Brain Surgeon on every output of every linear layer: the loss is the squared change of that output.

    Layers are done in the order of the model, each with the inputs that it gets after those before it were pruned. Then
    the network is trained as the task says.

    Args:
        task: its model is trained; `amount` is the sparsity of each row.
        batches, batch_size: of training data that the inputs come from.
        damping: added to the mean of x x^T, as a share of its mean diagonal entry.

    Raises:
        InputError: the model has no linear layer, or an option is out of range.

    Source: Hassibi, Stork, NIPS 1992, with the loss of one layer's outputs in the place of the network's, as in Dong,
    Chen, Pan, "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon", NIPS 2017,
    arXiv:1705.07565.
    """
    check_range("obs", "damping", damping, 0.0, 1.0, open_low=True)
    amount = task.wanted()
    network = copy.deepcopy(task.model)
    names = [n for n in sites_of(task, "obs") if isinstance(holder_of(network, n)[0], nn.Linear)]
    if not names:
        raise InputError("obs: the model has no linear layer; take obd, which masks convolutions as well")
    data = list(islice(task.train.batches(batch_size, shuffle=True, seed=task.seed), batches))
    masks: dict[str, Tensor] = {}
    history = []
    for name in names:
        layer = holder_of(network, name)[0]
        weight = layer.get_parameter("weight")
        inputs = _inputs_of(network, layer, data)
        moment = float(inputs.double().square().mean()) or 1.0
        inverse = inverse_second_moment(inputs, damping * moment)
        count = count_of(amount, weight.shape[1])
        rows = [surgeon(row, inverse, count) for row in weight.detach().cpu()]
        pruned = torch.stack([row for row, _ in rows])
        masks[name] = pruned != 0
        with torch.no_grad():
            weight.copy_(pruned)
        history.append({"weight": name, "loss": float(torch.stack([losses.sum() for _, losses in rows]).sum())})
    if task.training.epochs:
        return trained_with(task, network, masks, task.training.epochs, history)
    return finished(attach(network, masks), history)


def _inputs_of(network: nn.Module, layer: nn.Module, data: list[tuple[Any, Tensor]]) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2).cpu()))
    training = network.training
    try:
        network.eval()
        with torch.no_grad():
            for inputs, _ in data:
                network(inputs)
    finally:
        handle.remove()
        network.train(training)
    return torch.cat(seen)


CARDS = (
    Card(
        id="obd",
        title="Optimal Brain Damage",
        paper="LeCun, Denker, Solla; NIPS 1989",
        level="weight",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("gradients", "labels", "training"),
        specification="standard",
        entry="method",
        how='prunus.methods.run("obd", Task(model, x, train, validation, amount=0.8, training=config), form="fisher")',
        formula="s = h w^2 / 2, h a diagonal entry of the Hessian of the mean loss; the smallest of all layers go",
        cost="gradients of single examples (fisher) or Hessian-vector products (hutchinson) per round; one training",
        departures="h is Fisher information by default; form='backpropagated' is the paper's recursion, for networks "
        "of linear layers, convolutions, batch norm, pooling and pointwise activations; exact and by probes as well",
        evidence="two-layer network on 800 digits, three seeds, one round, no retraining: at 80% sparsity fisher and "
        "backpropagated leave 89-91% of the test digits right, hutchinson with 8 probes 73-80%, magnitude 92-93%; at "
        "90%: fisher 67-76%, backpropagated 71-79%, hutchinson 53-69%, magnitude 74-83%: it did not beat magnitude. "
        "Rank correlation of the saliencies with those of the exact diagonal, 128 digits, one seed: backpropagated "
        "0.996, fisher 0.98, magnitude 0.88, hutchinson 0.19",
        run=obd,
    ),
    Card(
        id="obs",
        title="Second Order Derivatives for Network Pruning: Optimal Brain Surgeon",
        paper="Hassibi, Stork; NIPS 1992; layer by layer: Dong, Chen, Pan; NIPS 2017; arXiv:1705.07565",
        level="weight",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("activations",),
        specification="standard",
        entry="method",
        how='prunus.methods.run("obs", Task(model, x, train, validation, amount=0.8, training=config))',
        formula="L_q = w_q^2 / (2 [H^-1]_qq); dw = -w_q / [H^-1]_qq H^-1 e_q",
        cost="of a layer with n inputs n^3 per output and weight that goes; linear layers only",
        departures="H is that of the squared change of one output, the mean of x x^T, instead of the network's",
        run=obs,
    ),
)
