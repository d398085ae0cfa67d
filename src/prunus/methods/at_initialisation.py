"""Pruning at initialisation: score a network that was not trained yet, keep a share of its weights, train those.

All methods mask single weights of linear and convolutional layers, ranked over the whole network; biases and norms
stay. `task.model` is the freshly initialised network, `task.amount` the sparsity.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..masks import masks_of
from ..statistics import gradient_flow, synaptic_gradient
from ..surgery.sparsified import Sparsified
from ..surgery.sparsify import sparsify
from ..training import fit
from .card import Card
from .task import Outcome, Task


def trained(task: Task, sparse: Sparsified[Any], notes: tuple[str, ...] = ()) -> Outcome:
    """Train a masked network as the task says and make its zeros permanent."""
    history: tuple[Mapping[str, Any], ...] = ()
    if task.training.epochs:
        result = fit(sparse.model, task.train, task.training, validation=task.validation, progress=False)
        history = tuple(result.to_dict()["history"])
    masks = {name: mask.clone() for name, mask in masks_of(sparse.model).items()}
    return Outcome(sparse.finalize(), masks=masks, history=history, notes=notes)


def _batches(task: Task, count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    for batch in task.train.batches(size, shuffle=True, seed=task.seed):
        found.append(batch)
        if len(found) == count:
            break
    return found


def snip(task: Task, *, batches: int = 1, batch_size: int = 128) -> Outcome:
    """Keep the weights with the largest |w dL/dw| on a few mini-batches, then train.

    Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019,
    arXiv:1810.02340.
    """
    data = _batches(task, batches, batch_size)
    sparse = sparsify(
        task.model, sparsity=task.wanted(), criterion="snip", data=data, loss=task.loss, scope="global", keep=task.keep
    )
    return trained(task, sparse)


def snip_isometry(task: Task, *, batches: int = 1, batch_size: int = 128, steps: int = 0, rate: float = 0.1) -> Outcome:
    """`snip` on a copy with orthogonal weights; afterwards the sparse weights may be brought near isometry again.

    Args:
        task: its model's weights are replaced, those of layers with two dimensions or more.
        batches, batch_size: for the score.
        steps: of gradient descent on ||(M W)^T (M W) - I||_F of each layer, mask fixed; 0 = none. The paper takes
            10,000.
        rate: of that descent.

    Source: Lee, Ajanthan, Gould, Torr, "A Signal Propagation Perspective for Pruning Neural Networks at
    Initialization", ICLR 2020, arXiv:1906.06307.
    """
    model = copy.deepcopy(task.model)
    generator = torch.Generator().manual_seed(task.seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.orthogonal_(parameter.data, generator=generator)
    data = _batches(task, batches, batch_size)
    sparse = sparsify(
        model, sparsity=task.wanted(), criterion="snip", data=data, loss=task.loss, scope="global", keep=task.keep
    )
    for name, mask in masks_of(sparse.model).items():
        module, _, local = name.rpartition(".")
        weight = sparse.model.get_submodule(module).parametrizations[local].original  # type: ignore[index, union-attr]
        weight.data.copy_(near_isometry(weight.data, mask, steps, rate))
    return trained(task, sparse)


def isometry_gap(weight: Tensor) -> Tensor:
    """||W^T W - I||_F of a weight reshaped to (fan_in, fan_out), or of W W^T where fan_in is the smaller."""
    matrix = weight.flatten(1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.norm(gram - torch.eye(len(gram)).to(gram))


def near_isometry(weight: Tensor, mask: Tensor, steps: int, rate: float) -> Tensor:
    """Descend on `isometry_gap` of the masked weight; masked entries stay as they are."""
    current = (weight * mask).detach().clone()
    best, least = current.clone(), isometry_gap(current)
    for _ in range(steps):
        current.requires_grad_(True)
        gap = isometry_gap(current * mask)
        (gradient,) = torch.autograd.grad(gap, current)
        current = (current.detach() - rate * gradient * mask).detach()
        found = isometry_gap(current)
        if found < least:
            best, least = current.clone(), found
    return torch.where(mask, best, weight)


def grasp(task: Task, *, per_class: int = 10, temperature: float = 200.0) -> Outcome:
    """Keep the weights whose removal would lower the norm of the gradient most, then train.

    Args:
        task: what to work on.
        per_class: examples of each class, split into two mini-batches.
        temperature: the logits are divided by it.

    Source: Wang, Zhang, Grosse, ICLR 2020, arXiv:2002.07376. The weights are scored as they are; the authors draw those
    of linear layers anew for the score.
    """
    inputs, labels = _of_each_class(task, per_class)
    halves = list(zip(inputs.chunk(2), labels.chunk(2)))
    statistics = gradient_flow(task.model, halves, loss=task.loss, temperature=temperature)
    sparse = sparsify(
        task.model, sparsity=task.wanted(), criterion="grasp", statistics=statistics, scope="global", keep=task.keep
    )
    return trained(task, sparse)


def _of_each_class(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """`count` training examples of each class (or as many as there are), classes mixed."""
    chosen: list[Tensor] = []
    classes: list[Tensor] = []
    taken: dict[int, int] = {}
    for inputs, labels in task.train.batches(256, shuffle=True, seed=task.seed):
        for example, label in zip(inputs, labels):
            if taken.get(int(label), 0) < count:
                taken[int(label)] = taken.get(int(label), 0) + 1
                chosen.append(example)
                classes.append(label)
    return torch.stack(chosen), torch.stack(classes)


def synflow(task: Task, *, rounds: int = 100) -> Outcome:
    """Prune in rounds by the flow of ones through absolute weights, without any data, then train.

    Args:
        task: what to work on.
        rounds: the density after round k is density^(k / rounds).

    Source: Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020, arXiv:2006.05467.
    """
    if rounds < 1:
        raise InputError(f"synflow: rounds={rounds} must be 1 or more")
    density = 1 - task.wanted()
    sparse: Sparsified[Any] | None = None
    for k in range(1, rounds + 1):
        model = task.model if sparse is None else sparse.model
        sparse = sparsify(
            model,
            sparsity=1 - density ** (k / rounds),
            criterion="synflow",
            statistics=synaptic_gradient(model, task.example_inputs),
            scope="global",
            keep=task.keep,
            inplace=sparse is not None,
        )
    assert sparse is not None
    return trained(task, sparse)


def sbp_sr(task: Task, *, batches: int = 1, batch_size: int = 128) -> Outcome:
    """Initialise on the edge of chaos, keep the weights with the largest |w dL/dw|, rescale each layer once, train.

    Source: Hayou, Ton, Doucet, Teh, "Robust Pruning at Initialization", ICLR 2021, arXiv:2002.08797. The rescaling is
    (E[fan_in W^2 m] / 2)^(-1/2), which changes nothing where nothing is pruned; whether the paper absorbs the variance
    2 of ReLU networks into its parametrisation is not stated.
    """
    model = copy.deepcopy(task.model)
    generator = torch.Generator().manual_seed(task.seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter.data, nonlinearity="relu", generator=generator)
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and isinstance(bias, Tensor):
            bias.data.zero_()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = _batches(task, batches, batch_size)
    sparse = sparsify(
        model, sparsity=task.wanted(), criterion="snip", data=data, loss=task.loss, scope="global", keep=task.keep
    )
    for name, mask in masks_of(sparse.model).items():
        module, _, local = name.rpartition(".")
        weight = sparse.model.get_submodule(module).parametrizations[local].original  # type: ignore[index, union-attr]
        weight.data.mul_(rescaling(dense[name], mask))
    return trained(task, sparse)


def rescaling(weight: Tensor, mask: Tensor, variance: float | None = None) -> float:
    """What brings a masked layer's mean of fan_in W^2 back to `variance`; None is that of the layer without its mask.

    1 for a layer that is pruned whole.
    """
    fan_in = weight[0].numel()
    wanted = fan_in * weight.square().mean() if variance is None else torch.tensor(variance)
    left = fan_in * (weight * mask).square().mean()
    return float((wanted / left).sqrt()) if left > 0 else 1.0


_card = partial(Card, level="weight", when="at initialisation", rate="given", selection="criterion", entry="method")


def _how(name: str) -> str:
    return f'prunus.methods.run("{name}", Task(model, x, train, validation, amount=0.95, training=config))'


def _measured(accuracies: str, more: str) -> str:
    return (
        "LeNet-300-100 on digits with 10/5/2/1/0.1% of its weights, test accuracy after training, mean of three seeds: "
        f"{accuracies}, random masks 94/86/23/10/10%, dense 97%{more} (docs/at_initialisation.md)"
    )


CARDS = (
    _card(
        id="snip",
        title="SNIP: Single-shot Network Pruning based on Connection Sensitivity",
        paper="Lee, Ajanthan, Torr; ICLR 2019; arXiv:1810.02340",
        needs=("gradients", "labels", "training"),
        specification="verified",
        how=_how("snip"),
        formula="|w dL/dw| on a mini-batch, absolute value after the mean",
        cost="one gradient; training from nothing",
        evidence=_measured(
            "96/95/93/87/10%", "; at 99.9% sparsity no path from input to output is left in 11 of 12 LeNets"
        ),
        run=snip,
    ),
    _card(
        id="snip_isometry",
        title="A Signal Propagation Perspective for Pruning Neural Networks at Initialization",
        paper="Lee, Ajanthan, Gould, Torr; ICLR 2020; arXiv:1906.06307",
        needs=("gradients", "labels", "training"),
        specification="verified",
        how=_how("snip_isometry"),
        formula="orthogonal weights, then |w dL/dw|; optionally min ||(M W)^T (M W) - I||_F",
        cost="one gradient; `steps` descents per layer",
        departures="no descent by default; the smaller of the two Gram matrices is brought to the identity",
        evidence="on a small residual network and digits, 12 epochs, one run: 94% at a density of 0.05, random masks"
        " 89%",
        run=snip_isometry,
    ),
    _card(
        id="grasp",
        title="Picking Winning Tickets Before Training by Preserving Gradient Flow",
        paper="Wang, Zhang, Grosse; ICLR 2020; arXiv:2002.07376",
        needs=("gradients", "labels", "training"),
        specification="verified",
        how=_how("grasp"),
        formula="w (H g), logits divided by 200; the lowest go",
        cost="two gradients and a Hessian-vector product",
        departures="linear layers are not drawn anew for the score",
        evidence=_measured(
            "96/95/88/26/10%", "; at 99.9% sparsity no path from input to output is left in 12 of 12 LeNets"
        ),
        run=grasp,
    ),
    _card(
        id="synflow",
        title="Pruning neural networks without any data by iteratively conserving synaptic flow",
        paper="Tanaka, Kunin, Yamins, Ganguli; NeurIPS 2020; arXiv:2006.05467",
        needs=("training",),
        specification="verified",
        how=_how("synflow"),
        formula="|w| dR/d|w|, R = sum of outputs for ones, in 100 rounds of exponential density",
        cost="a gradient in float64 per round",
        evidence=_measured(
            "96/96/94/93/34%", "; at 99.9% sparsity no layer is empty and a path is left in 12 of 12 LeNets"
        ),
        run=synflow,
    ),
    _card(
        id="sbp_sr",
        title="Robust Pruning at Initialization",
        paper="Hayou, Ton, Doucet, Teh; ICLR 2021; arXiv:2002.08797",
        needs=("gradients", "labels", "training"),
        specification="standard",
        how=_how("sbp_sr"),
        formula="|w dL/dw| at the edge of chaos, then W_l times (E[fan_in W^2 m] / sigma^2)^(-1/2)",
        cost="one gradient",
        departures="the rescaling keeps each layer's own second moment, as the form in the paper leaves that open",
        evidence="on a small residual network and digits, 12 epochs, one run: 84% at a density of 0.05, no better "
        "than random masks (89%)",
        run=sbp_sr,
    ),
)
