"""Second derivatives propagated back layer by layer, as squared first derivatives are: the recursion of Optimal Brain
Damage. The model is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..errors import InputError

Call = Callable[..., Any]
Rule = Callable[..., Tensor]
"""(function, arguments...) -> a tensor of the function's output shape, linear in what is differentiated, whose
first derivatives are the squares of the function's."""


def _linear(function: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **more: Any) -> Tensor:
    """sum w^2 x + sum w x^2 + b: towards x the squared weights, towards w the squared inputs."""
    towards_x = function(x, weight.detach().square(), None, *args, **more)
    source = towards_x + function(x.detach().square(), weight, None, *args, **more)
    if bias is None:
        return source
    return source + (bias if function is F.linear else bias.reshape(-1, *[1] * (x.dim() - 2)))


def _norm(
    function: Call, x: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Batch norm with its running statistics: a scale and a shift per channel."""
    if training:
        raise InputError("hessian_diagonal: form='backpropagated' needs batch norm with running statistics")
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, deviation = running_mean.reshape(shape), (running_var + eps).sqrt().reshape(shape)
    scale = 1 / deviation if weight is None else weight.detach().reshape(shape) / deviation
    source = x * scale.square()
    if weight is not None:
        source = source + ((x.detach() - mean) / deviation).square() * weight.reshape(shape)
    return source if bias is None else source + bias.reshape(shape)


def _pointwise(function: Call, x: Tensor, *args: Any, **more: Any) -> Tensor:
    """x f'(x)^2."""
    inner = x.detach().requires_grad_(True)
    with torch.enable_grad():
        more.pop("inplace", None)
        (slope,) = torch.autograd.grad(function(inner, *args, **more).sum(), inner)
    return x * slope.square()


def _mean(function: Call, x: Tensor, *args: Any, **more: Any) -> Tensor:
    """A mean of n entries has derivatives 1 / n: another 1 / n squares them."""
    out = function(x, *args, **more)
    return out * (out.numel() / x.numel())


def _window_mean(function: Call, x: Tensor, kernel_size: Any, *args: Any, **more: Any) -> Tensor:
    dims = 2 if function is F.avg_pool2d else 1
    entries = prod(kernel_size) if isinstance(kernel_size, tuple | list) else kernel_size**dims
    return function(x, kernel_size, *args, **more) / entries


def _as_it_is(function: Call, *args: Any, **more: Any) -> Tensor:
    """Derivatives that are 0 or 1 are their own squares."""
    return function(*args, **more)


_MEANS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean, Tensor.mean)
_SMOOTH = (
    torch.tanh, Tensor.tanh, F.tanh, torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.gelu, F.silu, F.elu, F.selu,
    F.softplus, F.leaky_relu, F.hardtanh, F.hardswish, F.hardsigmoid, F.mish, F.relu6,
)  # fmt: skip
_ZERO_OR_ONE = (
    F.relu, torch.relu, Tensor.relu, torch.max_pool1d, torch.max_pool2d, F.max_pool1d, F.max_pool2d, torch.flatten,
    Tensor.flatten, Tensor.view, Tensor.unflatten, Tensor.reshape, torch.reshape, Tensor.permute, torch.permute,
    Tensor.transpose, torch.transpose, Tensor.contiguous, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__,
    Tensor.__iadd__, Tensor.squeeze, Tensor.unsqueeze, Tensor.__getitem__, torch.cat, F.pad, Tensor.sum, torch.sum,
    F.dropout, F.dropout2d, Tensor.float, Tensor.double, Tensor.to,
)  # fmt: skip
RULES: Mapping[Call, Rule] = MappingProxyType(
    {
        F.linear: _linear,
        F.conv1d: _linear,
        F.conv2d: _linear,
        F.conv3d: _linear,
        F.batch_norm: _norm,
        F.avg_pool1d: _window_mean,
        F.avg_pool2d: _window_mean,
        **dict.fromkeys(_MEANS, _mean),
        **dict.fromkeys(_SMOOTH, _pointwise),
        **dict.fromkeys(_ZERO_OR_ONE, _as_it_is),
    }
)


class _Squared(TorchFunctionMode):
    """Functions of activations keep their values, but hand back squared derivatives; one without a rule is an error.

    What is computed from parameters alone, such as a mask times a weight, is left as it is.
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.activations: dict[int, Tensor] = {}
        self._note(inputs)

    def _note(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.activations[id(leaf)] = leaf  # held, so that no later tensor can take its identity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = kwargs or {}
        if not any(id(leaf) in self.activations for leaf in tree_leaves((args, more))):
            return func(*args, **more)
        with torch._C.DisableTorchFunction():
            out = func(*args, **more)
            if not isinstance(out, Tensor) or not out.is_floating_point():
                return out
            rule = RULES.get(func)
            if rule is None:
                name = getattr(func, "__qualname__", getattr(func, "__name__", str(func)))
                raise InputError(
                    f"hessian_diagonal: form='backpropagated' has no rule for {name}; take 'hutchinson' or 'fisher'"
                )
            source = rule(func, *args, **more)
            result = out if rule is _as_it_is else source + (out - source).detach()
        self._note(result)
        return result


def squared_backward(model: nn.Module, parameters: list[Tensor], inputs: Any, target: Any, loss: Any) -> list[Tensor]:
    """The recursion for every parameter, of the mean loss over the batch.

    d2L/dx_j^2 = sum_i w_ij^2 d2L/da_i^2 below a layer a = W x, times f'(a)^2 below an activation f; d2L/dw_ij^2 =
    d2L/da_i^2 x_j^2, summed over the uses of a weight. Second derivatives between different units, and f'', are left
    out. At the output the diagonal of the loss is exact.

    Args:
        model: in evaluation mode, from one tensor to outputs (examples, values).
        parameters: of it. inputs, target: a batch. loss: (output, target) -> mean over the examples.

    Returns:
        A tensor for each parameter, >= 0 where the loss is convex in the outputs.

    Raises:
        InputError: the model calls a function that is not in `RULES`.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989, eqs. 4 to 8; the Levenberg-Marquardt form.
    """
    given = inputs.detach()
    with _Squared(given):
        output = model(given)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise InputError("hessian_diagonal: form='backpropagated' needs one output of (examples, values)")
    leaf = output.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
    curvature = torch.zeros_like(leaf)
    for value in range(leaf.shape[1] if slope.requires_grad else 0):
        (row,) = torch.autograd.grad(slope[:, value].sum(), leaf, retain_graph=True)
        curvature[:, value] = row[:, value]
    found = torch.autograd.grad(output, parameters, curvature, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found)]
