"""Diagonals of the Hessian of the loss: exact, by random probes, as Fisher information, or propagated back. The model
is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..types import Statistics
from .backpropagated import squared_backward
from .state import preserved

Loss = Callable[[Any, Any], Tensor]
Diagonal = Callable[[nn.Module, list[Tensor], Any, Any, Loss, torch.Generator], list[Tensor]]
"""(model, parameters, inputs, target, loss, generator) -> a diagonal for each parameter, of the mean loss."""

LIMIT = 20_000
"""Parameters up to which the exact diagonal is computed: each takes a backward pass."""


def hessian_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    form: str = "hutchinson",
    loss: Loss | None = None,
    probes: int = 1,
    seed: int = 0,
) -> Statistics:
    """Second derivatives of the mean loss with respect to every parameter, in evaluation mode.

    Args:
        model: only read. Masks of `prunus.masks` stay in force.
        batches: (inputs, target); the result is the mean over all examples.
        form: "exact": one backward pass per parameter, for tiny networks. "hutchinson": mean of v (H v) over random
            signs v, unbiased. "fisher": mean of the squared gradients of single examples, which is not negative and
            equals the expected second derivative where the network's probabilities are right. "backpropagated": the
            paper's own recursion, in one backward pass; not negative for convex losses; for networks of linear layers,
            convolutions, batch norm, pooling and pointwise activations.
        loss: (output, target) -> mean over the examples, a scalar; None is cross entropy.
        probes: of "hutchinson", per batch.
        seed: of the probes.

    Returns:
        Statistics with the need "hessian_diagonal", by parameter name. Weights that are used several times (in
        convolutions) get the sum over all uses.

    Raises:
        UnknownNameError: no such form.
        InputError: no batches, too many parameters for the exact one, or a function without a rule for
            "backpropagated".

    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989; the probes: Bekas, Kokiopoulou, Saad, "An estimator
    for the diagonal of a matrix", Applied Numerical Mathematics 57, 2007.
    """
    if form not in FORMS:
        raise UnknownNameError.of("form of the Hessian's diagonal", form, FORMS)
    if probes < 1:
        raise InputError(f"hessian_diagonal: probes={probes} must be 1 or more")
    value_of = loss or nn.functional.cross_entropy
    generator = torch.Generator().manual_seed(seed)
    count = examples = 0
    with preserved(model), torch.enable_grad():
        model.eval()
        named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        size = sum(p.numel() for p in named.values())
        if form == "exact" and size > LIMIT:
            raise InputError(f"hessian_diagonal: form='exact' takes {size:,} passes; take 'hutchinson' or 'fisher'")
        parameters = [p.requires_grad_(True) for p in named.values()]
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        for inputs, target in batches:
            number = len(target)
            for _ in range(probes if form == "hutchinson" else 1):
                found = FORMS[form](model, parameters, inputs, target, value_of, generator)
                total = [t + number * f for t, f in zip(total, found)]
            count, examples = count + 1, examples + number
    if not count:
        raise InputError("hessian_diagonal: there are no batches; give at least one (inputs, target)")
    weight = examples * (probes if form == "hutchinson" else 1)
    values = {name: (t / weight).to(p.dtype).cpu() for (name, p), t in zip(named.items(), total)}
    return Statistics({"hessian_diagonal": values}, count, examples)


def _gradients(value: Tensor, parameters: list[Tensor], graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(value, parameters, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]


def _exact(
    model: nn.Module, parameters: list[Tensor], inputs: Any, target: Any, loss: Loss, _: torch.Generator
) -> list[Tensor]:
    gradients = _gradients(loss(model(inputs), target), parameters, graph=True)
    result = []
    for parameter, gradient in zip(parameters, gradients):
        diagonal = torch.zeros(parameter.numel(), dtype=parameter.dtype)
        for i, entry in enumerate(gradient.flatten()):
            if entry.requires_grad:
                row = torch.autograd.grad(entry, parameter, retain_graph=True, allow_unused=True)[0]
                diagonal[i] = 0.0 if row is None else row.flatten()[i]
        result.append(diagonal.reshape(parameter.shape).to(parameter.device))
    return result


def _hutchinson(
    model: nn.Module, parameters: list[Tensor], inputs: Any, target: Any, loss: Loss, generator: torch.Generator
) -> list[Tensor]:
    gradients = _gradients(loss(model(inputs), target), parameters, graph=True)
    signs = [(torch.randint(0, 2, p.shape, generator=generator) * 2 - 1).to(p) for p in parameters]
    product = torch.stack([(g * v).sum() for g, v in zip(gradients, signs)]).sum()
    if not product.requires_grad:  # a loss that is linear in every weight
        return [torch.zeros_like(p) for p in parameters]
    return [v * h for v, h in zip(signs, _gradients(product, parameters))]


def _fisher(
    model: nn.Module, parameters: list[Tensor], inputs: Any, target: Any, loss: Loss, _: torch.Generator
) -> list[Tensor]:
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(target)):
        found = _gradients(loss(model(inputs[i : i + 1]), target[i : i + 1]), parameters)
        total = [t + g.square() for t, g in zip(total, found)]
    return [t / len(target) for t in total]


def _backpropagated(
    model: nn.Module, parameters: list[Tensor], inputs: Any, target: Any, loss: Loss, _: torch.Generator
) -> list[Tensor]:
    return squared_backward(model, parameters, inputs, target, loss)


FORMS: Mapping[str, Diagonal] = MappingProxyType(
    {"exact": _exact, "hutchinson": _hutchinson, "fisher": _fisher, "backpropagated": _backpropagated}
)
