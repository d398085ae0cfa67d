"""Named tensors of a model: finding them, slicing them, and copying a model with some of them replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import SurgeryError
from ..graph.caches import drop_caches
from ..graph.inputs import compressed_copies
from ..graph.parametrized import computed_tensors
from .wrapped import part_of, refusal, values_of, why_whole, wraps_others

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first tensor is; the CPU for a model without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor of that dotted name, and the tensor's name in it."""
    path, _, local = name.rpartition(".")
    try:
        return model.get_submodule(path), local
    except AttributeError as error:
        raise SurgeryError(
            f"the model has no tensor {name!r} ({error}); was the plan made for another model?"
        ) from error


def find(model: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or plain tensor attribute of that dotted name."""
    module, local = owner_of(model, name)
    tensor = getattr(module, local, None)
    if not isinstance(tensor, Tensor):
        raise SurgeryError(f"the model has no tensor {name!r}; was the plan made for another model?")
    return tensor


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, the names of tied ones included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def holders(model: nn.Module, wanted: Iterable[Tensor]) -> dict[int, list[tuple[nn.Module, str]]]:
    """id of each wanted tensor -> every (module, local name) under which the model holds it. One walk."""
    found: dict[int, list[tuple[nn.Module, str]]] = {id(tensor): [] for tensor in wanted}
    for module in model.modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for local, value in table.items():
                if id(value) in found:
                    found[id(value)].append((module, local))
    return found


def hidden_holders(model: nn.Module, wanted: Iterable[Tensor]) -> dict[int, str]:
    """id of each wanted tensor that stands in a list, tuple or dict, where it cannot be swapped -> that attribute."""
    ids = {id(tensor) for tensor in wanted}
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            continue
        for local, value in module.__dict__.items():
            if value is module._parameters or value is module._buffers:
                continue
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            for item in inner:
                if id(item) in ids:
                    found[id(item)] = f"{path}.{local}" if path else local
    return found


def _whole(model: nn.Module, name: str) -> str:
    """Which parametrisation that cannot be cut computes with this tensor; "" for none."""
    if "parametrizations" not in name.split("."):
        return ""
    path, _, local = f".{name}".partition(".parametrizations.")
    module = model.get_submodule(path[1:])
    return next((c.whole for c in computed_tensors(module) if c.path == local.partition(".")[0]), "")


def why_uncuttable(model: nn.Module, name: str, tensor: Tensor) -> str:
    """Why this tensor cannot be sliced, with the remedy; "" when it can."""
    if kind := _whole(model, name):
        return (
            f"a parametrised tensor ({kind}) is computed from {name!r}, from all rows and columns together. Make it "
            "permanent first with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if is_lazy(tensor):
        return f"{name!r} has no shape yet (a lazy layer): run the model once on an example first"
    if tensor.is_quantized:
        return f"{name!r} is quantised: prune the floating point model, then quantise it"
    if tensor.layout is not torch.strided:
        return f"{name!r} has the layout {tensor.layout}: call .to_dense() on it first"
    if wraps_others(tensor) and (reason := why_whole(name, tensor)):
        return reason
    if not tensor.is_leaf:
        return (
            f"{name!r} is computed from other tensors and not a leaf (old-style weight_norm, spectral_norm or "
            "torch.nn.utils.prune?): make it permanent first, e.g. with torch.nn.utils.prune.remove"
        )
    return ""


def _like(old: Tensor, data: Tensor) -> Tensor:
    """`data` as the same kind of tensor that `old` is: Parameter, Buffer, subclass, requires_grad, own attributes."""
    if type(old) is Tensor:
        return data.requires_grad_(old.requires_grad)
    if type(old) is nn.Parameter:
        new: Tensor = nn.Parameter(data, requires_grad=old.requires_grad)
    else:
        new = Tensor._make_subclass(type(old), data, old.requires_grad)
    vars(new).update(vars(old))
    return new


def sliced(old: Tensor, keeps: Mapping[int, Tensor]) -> Tensor:
    """A new tensor with only the positions `keeps[dim]` (int64) of each dimension `dim`, of the same kind as `old`.

    Stays on the device, keeps dtype, requires_grad and channels-last order. Gradients are not carried over.

    Raises:
        SurgeryError: it wraps other tensors, and no part of it can be made.
    """
    if wraps_others(old):
        part = part_of(old, keeps)
        if part is None:
            raise SurgeryError(refusal("a tensor", old))
        return part
    data = old.detach()
    channels_last = (
        data.dim() == 4 and not data.is_contiguous() and data.is_contiguous(memory_format=torch.channels_last)
    )
    for dim, keep in keeps.items():
        data = data.index_select(dim, keep.to(data.device))
    return _like(old, data.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))


def converted(old: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change(old)` as the same kind of tensor that `old` is; of a wrapper its numbers, as an ordinary tensor."""
    if wraps_others(old):
        data = change(values_of(old))
        return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data
    return _like(old, change(old.detach()))


def copy_with(model: ModuleT, replacement: Callable[[Tensor], Tensor | None]) -> ModuleT:
    """A deep copy of the model in which parameters and buffers are replaced, without ever copying the replaced ones.

    `replacement(tensor)` gives the tensor to put in the place of `tensor` (asked once per tensor, so that tied ones
    stay tied), or None for a plain copy. Plain tensor attributes are asked about too.

    Raises:
        SurgeryError: the model cannot be copied; says what stands in the way.
    """
    memo: dict[int, object] = {**compressed_copies(model)}
    tensors = [*named_tensors(model).values()]
    tensors += [v for module in model.modules() for v in module.__dict__.values() if isinstance(v, Tensor)]
    for tensor in tensors:
        if id(tensor) not in memo:
            new = replacement(tensor)
            if new is not None:
                memo[id(tensor)] = new
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            f"the model ({type(model).__name__}) cannot be copied: {type(error).__name__}: {error}. Surgery works on "
            "copies; a computed tensor, a lock or an open file among the attributes prevents that"
        ) from error
    drop_caches(copied)
    return copied
