"""Which tensors of a model can be masked, and which of their dimensions are outputs and inputs.

`WEIGHTS` is the one table: layer type -> its weights. A subclass of a listed layer is that layer. What is not listed
(embeddings, norms, biases, bare parameters) stays dense unless the user names it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..errors import InputError, UnknownNameError
from ..types import Refusal
from .attach import Mask, mask_of

Selection = str | nn.Module | Iterable[str | nn.Module]
"""Modules or tensors: names, glob patterns ("layer3.*") or modules."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a layer type: a regular expression of their local names, and whether they are stored (in, out)."""

    names: str = "weight"
    transposed: bool = False


WEIGHTS: Mapping[type | str, Weights] = MappingProxyType(
    {
        nn.Linear: Weights(),
        _ConvNd: Weights(),
        _ConvTransposeNd: Weights(transposed=True),
        nn.MultiheadAttention: Weights("in_proj_weight|[qkv]_proj_weight"),
        RNNBase: Weights("weight_.*"),
        RNNCellBase: Weights("weight_.*"),
        "transformers.pytorch_utils.Conv1D": Weights(transposed=True),
        "torch_geometric.nn.dense.linear.Linear": Weights(),
    }
)
"""Types of optional packages stand here by their full name, so that nothing is imported for them."""


@dataclass(frozen=True, slots=True)
class Site:
    """One weight that can be masked.

    Attributes:
        name: of the tensor, as in the model without masks ("layer1.0.conv1.weight").
        module: name of the module that holds it.
        tensor: its name in that module.
        shape: (out, in, *kernel).
        transposed: it is stored (in, out, *kernel).
    """

    name: str
    module: str
    tensor: str
    shape: tuple[int, ...]
    transposed: bool = False

    def canonical(self, tensor: Tensor) -> Tensor:
        """A tensor of the stored shape as (out, in, *kernel), or back."""
        return tensor.transpose(0, 1) if self.transposed else tensor


def find_sites(
    model: nn.Module, layers: Selection | None = None, keep: Selection = ()
) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The weights to mask, in the order of the model, and those that stay dense with the reason.

    Args:
        model: it is only read.
        layers: what to mask; None is every weight of the layers in `WEIGHTS`. A tensor of two or more dimensions that
            is named here is taken whatever its layer: it is then read as (out, in, *kernel).
        keep: what to leave dense.

    Raises:
        UnknownNameError: a name fits nothing in the model.
        InputError: a module is not one of the model's.
    """
    wanted = None if layers is None else set(_matching(model, layers, "layers"))
    kept = set(_matching(model, keep, "keep"))
    sites: list[Site] = []
    left: list[Refusal] = []
    seen: set[int] = set()
    tied = _tied_elsewhere(model)
    for name, module_name, local, tensor in _tensors(model):
        known = _entry(model.get_submodule(module_name), local)
        if id(tensor) in seen or (wanted is not None and name not in wanted):
            continue
        if known is None and not is_lazy(tensor) and tensor.dim() < 2:
            continue  # biases, norms
        seen.add(id(tensor))
        reason, remedy = _reason(model, name, tensor, known, wanted is not None, tied, name in kept)
        if reason:
            left.append(Refusal(name, reason, module=module_name, remedy=remedy))
            continue
        transposed = known is not None and known.transposed
        shape = tuple(tensor.shape)
        shape = (shape[1], shape[0], *shape[2:]) if transposed else shape
        sites.append(Site(name, module_name, local, shape, transposed))
    return tuple(sites), tuple(left)


def _reason(
    model: nn.Module,
    name: str,
    tensor: Tensor,
    known: Weights | None,
    named: bool,
    tied: Mapping[int, str],
    kept: bool,
) -> tuple[str, str]:
    """Why a tensor stays dense, and what the user could do; empty if it can be masked."""
    if kept:
        return "keep= protects it", ""
    if is_lazy(tensor):
        return "it has no shape yet (a lazy layer)", "run the model once on an example first"
    if known is None and not named:
        return "its layer is not one whose weights are known to be prunable", f"name it: layers={name!r}"
    if id(tensor) in tied and not named:
        return f"it is tied to {tied[id(tensor)]!r}", f"name it to mask both: layers={name!r}"
    if not tensor.is_floating_point():
        return f"its entries are {tensor.dtype}", "prune the floating point model, then quantise it"
    owner, _, _ = name.rpartition(".")
    module = model.get_submodule(owner)
    local = name[len(owner) + 1 :] if owner else name
    if parametrize.is_parametrized(module, local) and mask_of(module, local) is None:
        return (
            "it is parametrised already (torch.nn.utils.parametrize)",
            "make it permanent first with torch.nn.utils.parametrize.remove_parametrizations",
        )
    return "", ""


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, str, Tensor]]:
    """(name, module name, local name, stored parameter) of every parameter as the model without masks names it."""
    for module_name, module in model.named_modules(remove_duplicate=True):
        if isinstance(module, (Mask, parametrize.ParametrizationList)) or ".parametrizations" in f".{module_name}":
            continue
        dot = f"{module_name}." if module_name else ""
        if parametrize.is_parametrized(module):
            for local, chain in module.parametrizations.items():  # type: ignore[union-attr]
                original = getattr(chain, "original", None)
                if isinstance(original, nn.Parameter):
                    yield f"{dot}{local}", module_name, local, original
                elif original is None:
                    yield f"{dot}{local}", module_name, local, getattr(module, local)
        for local, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{dot}{local}", module_name, local, parameter


def _entry(module: nn.Module, local: str) -> Weights | None:
    """The table's entry for one tensor of a module."""
    for kind in type(module).__mro__:
        entry = WEIGHTS.get(kind) or WEIGHTS.get(f"{kind.__module__}.{kind.__qualname__}")
        if entry is not None:
            return entry if re.fullmatch(entry.names, local) else None
    return None


def _tied_elsewhere(model: nn.Module) -> dict[int, str]:
    """id of each parameter that a layer outside the table also holds (tied embeddings) -> its name there."""
    return {
        id(tensor): name
        for name, module_name, local, tensor in _tensors(model)
        if _entry(model.get_submodule(module_name), local) is None
    }


def _matching(model: nn.Module, given: Selection, argument: str) -> Iterator[str]:
    """Names of the tensors that a selection means."""
    items = [given] if isinstance(given, str | nn.Module) else list(given)
    if not items:
        return
    tensors = [name for name, *_ in _tensors(model)]
    modules = {name: module for name, module in model.named_modules() if ".parametrizations" not in f".{name}"}
    names = {id(module): name for name, module in modules.items()}
    for item in items:
        if isinstance(item, nn.Module):
            if id(item) not in names:
                raise InputError(f"{argument}: this {type(item).__name__} is not a module of the model")
            found = [names[id(item)]]
        elif isinstance(item, str):
            found = [name for name in (*modules, *tensors) if name and fnmatch.fnmatchcase(name, item)]
            if not found:
                raise UnknownNameError.of(f"name in {argument}=", item, [n for n in (*modules, *tensors) if n])
        else:
            raise InputError(f"{argument}: give names, patterns or modules, got {type(item).__name__}")
        for match in found:
            prefix = f"{match}." if match else ""
            yield from (name for name in tensors if name == match or name.startswith(prefix))
