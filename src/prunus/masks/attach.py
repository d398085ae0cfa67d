"""Masks on a model: put on, read, changed in place, taken off, or made permanent.

A mask is a parametrization (`torch.nn.utils.parametrize`): the module computes with `original * mask`, the optimiser
goes on with the very same parameter, and the mask is a buffer in the state dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, ShapeError, UnknownNameError

ModuleT = TypeVar("ModuleT", bound=nn.Module)

Gradient = Literal["zero", "dense"]
"""What the masked weights' gradient is: "zero", or "dense" (straight through: as if they were there), so that the
weights under the mask go on moving and can come back."""

GRADIENTS = ("zero", "dense")


class Mask(nn.Module):
    """weight -> weight * mask. True stays."""

    mask: Tensor

    def __init__(self, mask: Tensor, gradient: Gradient = "zero") -> None:
        super().__init__()
        self.gradient: Gradient = gradient
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros."""
        if self.gradient == "dense":
            # w - w is 0 and w - 0 is w, to the bit; and the gradient passes w as if nothing was taken away.
            return weight - weight.detach() * ~self.mask
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the module's weight becomes the original."""
        return weight

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"shape={tuple(self.mask.shape)}, gradient={self.gradient!r}"


def attach(model: ModuleT, masks: Mapping[str, Tensor], gradient: Gradient = "zero") -> ModuleT:
    """Put masks on a model's tensors, in place. A tensor that has a mask gets the new values in its old buffer.

    Tied weights share one mask. Parameters stay the same objects, so that an optimiser made before goes on.

    Args:
        model: changed in place, all or nothing.
        masks: tensor name, as in the model without masks ("layer1.0.conv1.weight") -> bool of its shape; True stays.
        gradient: of the weights under the mask, see `Gradient`.

    Returns:
        The model.

    Raises:
        UnknownNameError: no such tensor, or no such kind of gradient.
        ShapeError: a mask has another shape than its tensor.
        InputError: a mask is not bool, or the tensor has a parametrization of another kind.
    """
    if gradient not in GRADIENTS:
        raise UnknownNameError.of("gradient", gradient, GRADIENTS)
    places = {name: _checked(model, name, mask) for name, mask in masks.items()}
    holders = _holders(model)
    for name, (module, local) in places.items():
        worn = mask_of(module, local)
        if worn is not None:
            worn.gradient = gradient
            with torch.no_grad():
                worn.mask.copy_(masks[name])
            continue
        parameter = getattr(module, local)
        new = Mask(_like(masks[name], parameter), gradient)
        for holder, its_name in holders.get(id(parameter), [(module, local)]):
            _own_class(holder)
            order = _order_of(holder)
            parametrize.register_parametrization(holder, its_name, new, unsafe=True)
            holder.parametrizations[its_name].order = order  # type: ignore[index, union-attr]
            if isinstance(holder, nn.RNNBase):
                _read_through_names(holder)
    return model


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks that a model wears, by tensor name: the live buffers, bool, True stays."""
    return {name: mask.mask for name, _, _, mask in _worn(model)}


def mask_of(module: nn.Module, tensor: str) -> Mask | None:
    """The mask on one tensor of a module."""
    if not parametrize.is_parametrized(module, tensor):
        return None
    chain: Any = module.parametrizations[tensor]  # type: ignore[index]
    return chain[0] if len(chain) == 1 and isinstance(chain[0], Mask) else None


def gradient_of(model: nn.Module, name: str) -> Gradient:
    """What the gradient under the mask of that tensor is."""
    return next(mask.gradient for worn, _, _, mask in _worn(model) if worn == name)


def dense_weight(module: nn.Module, tensor: str) -> Tensor:
    """The stored values of a tensor: those under its mask, if it wears one."""
    if mask_of(module, tensor) is None:
        return getattr(module, tensor)
    return module.parametrizations[tensor].original  # type: ignore[index, union-attr]


def finalize(model: ModuleT) -> ModuleT:
    """Write the zeros into the weights and take the masks off, in place; the parameters stay the same objects.

    Without masks nothing changes, so it can be called twice. From here on nothing keeps the zeros: an optimiser's
    momentum or another training step may move them.
    """
    with torch.no_grad():
        for _, module, local, mask in _worn(model):
            original = dense_weight(module, local)
            original.masked_fill_(~mask.mask, 0.0)  # +0, where a product with False may leave -0
    return detach(model)


def detach(model: ModuleT, names: Iterable[str] | None = None) -> ModuleT:
    """Take masks off, in place: the model has the values that were under them. `names` of tensors; None is all."""
    wanted = None if names is None else {id(mask) for name, _, _, mask in _worn(model) if name in set(names)}
    for _, module, local, mask in list(_worn(model)):
        if wanted is not None and id(mask) not in wanted:
            continue
        _own_class(module)
        order = _order_of(module)
        parametrize.remove_parametrizations(module, local, leave_parametrized=False)
        for name in order:  # optimisers number parameters by their order: a weight returns to its old place
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)
    return model


def _order_of(module: nn.Module) -> tuple[str, ...]:
    """The module's parameters in the order that they had before the first mask."""
    if parametrize.is_parametrized(module):
        for chain in module.parametrizations.values():  # type: ignore[union-attr]
            order = getattr(chain, "order", None)
            if order is not None:
                return order
    return tuple(module._parameters)


def _worn(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Mask]]:
    """(tensor name, module, local name, mask) of every masked tensor; of tied ones all names."""
    for module_name, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        for local in list(module.parametrizations):  # type: ignore[arg-type]
            mask = mask_of(module, local)
            if mask is not None:
                yield f"{module_name}.{local}" if module_name else local, module, local, mask


def _checked(model: nn.Module, name: str, mask: Tensor) -> tuple[nn.Module, str]:
    path, _, local = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    tensor = getattr(module, local, None)
    if module is None or not isinstance(tensor, Tensor):
        known = [n for n, p in model.named_parameters() if p.dim() > 1]
        raise UnknownNameError.of("tensor to mask", name, known)
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise InputError(f"attach: the mask of {name!r} must be a bool tensor, True where the weight stays")
    if mask.shape != tensor.shape:
        raise ShapeError(f"attach: {name!r} has shape {tuple(tensor.shape)}, its mask {tuple(mask.shape)}")
    if parametrize.is_parametrized(module, local) and mask_of(module, local) is None:
        raise InputError(
            f"attach: {name!r} has another parametrization; make it permanent first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if not parametrize.is_parametrized(module, local) and local not in module._parameters:
        raise InputError(f"attach: {name!r} is no parameter of its module, so that a mask cannot ride on it")
    return module, local


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """id of each parameter -> every (module, local name) that holds it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for local, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, local))
    return found


def _like(mask: Tensor, weight: Tensor) -> Tensor:
    """A copy with the device and strides of the weight, so that their product needs no reordering."""
    return torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that no copy of it shares.

    parametrize adds properties to the module's class and takes them away; deepcopy lets the copy share that class, so
    that changing one of the two would break the other.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        namespace = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, namespace)  # type: ignore[assignment]


def _read_through_names(module: nn.RNNBase) -> None:
    """A recurrent layer computes with a list of its parameters; let it look them up, so that it sees the masks.

    The class is the module's own: parametrize made it, and puts the old one back when the last mask goes. The list then
    still holds the same parameters.
    """
    names = tuple(module._flat_weights_names)

    def weights(self: nn.RNNBase) -> list[Tensor]:
        return [getattr(self, name) for name in names]

    def ignore(self: nn.RNNBase, value: Any) -> None:
        pass

    type(module)._flat_weights = property(weights, ignore)  # type: ignore[assignment, method-assign]
