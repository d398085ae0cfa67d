"""Statistics that need more than one pass of gradients, for pruning at initialisation. The model is only read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InputError
from ..graph import inputs as example
from ..types import Statistics
from .state import preserved

Loss = Callable[[Any, Any], Tensor]


def gradient_flow(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss: Loss | None = None,
    temperature: float = 200.0,
    training: bool = True,
) -> Statistics:
    """H g for every parameter: the Hessian of the loss times its gradient, which is how the squared norm of the
    gradient changes with the weight, halved.

    Args:
        model: only read.
        batches: (inputs, class numbers). The gradient is the sum over all batches of their mean losses, as the Hessian.
        loss: (output, target) -> scalar; None is cross entropy of the output divided by `temperature`.
        temperature: of the default loss.
        training: batch norm uses the batch's statistics, as in the authors' code.

    Returns:
        Statistics with the need "gradient_flow", by parameter name.

    Raises:
        InputError: there are no batches.

    Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020,
    arXiv:2002.07376.
    """
    held = list(batches)
    if not held:
        raise InputError("gradient_flow: there are no batches; give at least one (inputs, class numbers)")
    value_of = loss or (lambda output, target: nn.functional.cross_entropy(output / temperature, target))
    with preserved(model), torch.enable_grad():
        model.train(training)
        parameters = _floating(model)
        total = [torch.zeros_like(p) for p in parameters.values()]
        for inputs, target in held:
            gradients = torch.autograd.grad(value_of(model(inputs), target), [*parameters.values()], allow_unused=True)
            total = [t if g is None else t + g.detach() for t, g in zip(total, gradients)]
        flow = [torch.zeros_like(t) for t in total]
        for inputs, target in held:
            value = value_of(model(inputs), target)
            gradients = torch.autograd.grad(value, [*parameters.values()], create_graph=True, allow_unused=True)
            product = sum((t * g).sum() for t, g in zip(total, gradients) if g is not None)
            assert isinstance(product, Tensor)
            second = torch.autograd.grad(product, [*parameters.values()], allow_unused=True)
            flow = [f if s is None else f + s.detach() for f, s in zip(flow, second)]
    found = {name: value.cpu() for name, value in zip(parameters, flow)}
    return Statistics({"gradient_flow": found}, len(held), sum(len(target) for _, target in held))


def synaptic_gradient(model: nn.Module, example_inputs: Any) -> Statistics:
    """Gradient of R, the sum of the outputs for inputs of ones, with every parameter and buffer at its absolute value.

    Computed in float64, in which R of a deep network neither overflows nor vanishes; in eval mode.

    Args:
        model: only read. Masks of `prunus.masks` stay in force.
        example_inputs: a tensor, a tuple or a dict; only shapes count, and one example is enough.

    Returns:
        Statistics with the need "synaptic_gradient", by parameter name, in float64.

    Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", NeurIPS 2020, arXiv:2006.05467.
    """
    twin = copy.deepcopy(model).double().eval()
    ones = tree_map(lambda leaf: _ones(leaf) if isinstance(leaf, Tensor) else leaf, example_inputs)
    with torch.enable_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.data.abs_()
        parameters = _floating(twin)
        value = next(leaf for leaf in _leaves(example.call(twin, ones)) if leaf.requires_grad).sum()
        gradients = torch.autograd.grad(value, [*parameters.values()], allow_unused=True)
    found = {
        name: torch.zeros_like(parameter) if gradient is None else gradient.detach().cpu()
        for (name, parameter), gradient in zip(parameters.items(), gradients)
    }
    return Statistics({"synaptic_gradient": found}, 1, 1)


def _ones(leaf: Tensor) -> Tensor:
    first = leaf[:1] if leaf.dim() else leaf
    return torch.ones_like(first, dtype=torch.float64) if leaf.is_floating_point() else first


def _leaves(out: Any) -> list[Tensor]:
    fields = getattr(out, "to_tuple", None)
    return [leaf for leaf in tree_leaves(out if fields is None else fields()) if isinstance(leaf, Tensor)]


def _floating(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters
