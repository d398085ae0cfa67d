"""How a group's tensors become what criteria take: (units, elements) matrices and (units,) vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..graph.counting import unit_positions
from ..graph.parametrized import computed_tensors
from ..types import Graph, Group, Place, Role, Statistics, unit_key


def unit_matrix(tensor: Tensor, place: Place, group: str) -> Tensor:
    """What belongs to each unit of the group in one dimension of a tensor: (units, elements), a floating point tensor.

    Half precision becomes float32. If every unit is one position, in order, the result is a view.

    Raises:
        ShapeError: the tensor does not have the dimension that the place says.
    """
    if tensor.dim() <= place.dim or tensor.shape[place.dim] != place.axis.size:
        raise ShapeError(
            f"{place.tensor} has shape {tuple(tensor.shape)}, but the graph has {place.axis.size} positions in its "
            f"dimension {place.dim}: score the model that was traced, or trace this one"
        )
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype in (torch.float16, torch.bfloat16) or not tensor.is_floating_point():
        tensor = tensor.float()
    rows = tensor.detach().movedim(place.dim, 0).reshape(place.axis.size, -1)
    positions = unit_positions(place.axis, group)
    if positions.shape == (len(rows), 1) and np.array_equal(positions[:, 0], np.arange(len(rows))):
        return rows
    index = torch.from_numpy(positions).to(rows.device)
    return rows[index.reshape(-1)].reshape(len(positions), -1)


def unit_kernels(tensor: Tensor, place: Place, group: str) -> Tensor | None:
    """What belongs to each unit, by input channel: (units, channels, positions); None for a tensor of one dimension.

    A unit that has several positions in the tensor has the channels of all of them.
    """
    if tensor.dim() < 2:
        return None
    rows = unit_matrix(tensor, place, group)
    others = [size for dim, size in enumerate(tensor.shape) if dim != place.dim]
    return rows.reshape(len(rows), -1, math.prod(others[1:]))


_NORM_ROLES: Mapping[str, Role] = {"norm_scale": "scale", "norm_shift": "shift"}


def _module(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def generator_of(seed: int, name: str) -> torch.Generator:
    """For one group or layer: seeded from its name too, so that its draw does not depend on those before it."""
    mixed = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


class Source:
    """Where the arguments of a criterion's function come from: the model's tensors, statistics, a seed."""

    def __init__(
        self, graph: Graph, tensors: Mapping[str, Tensor], statistics: Statistics | None, seed: int = 0
    ) -> None:
        self._graph = graph
        self._tensors = tensors
        self._statistics = statistics
        self._seed = seed
        self._checked: set[str] = set()
        self._groups: dict[str, Group] = {}

    def read(self, need: str, group: str, place: Place) -> Tensor | torch.Generator | None:
        """The argument `need` for one place of a group; None where the statistics have nothing for this place.

        Raises:
            InputError: a tensor is missing or not finite, or the need was not collected.
        """
        if need == "generator":
            return generator_of(self._seed, group)
        if need == "weight":
            return unit_matrix(self._tensor(place.tensor), place, group)
        if need == "kernels":
            return unit_kernels(self._tensor(place.tensor), place, group)
        if need in _NORM_ROLES:
            return self._of_norm(_NORM_ROLES[need], group, place)
        collected = self._collected(need)
        name = self._name_in(collected, place.tensor)
        if name is not None:
            return unit_matrix(collected[name], place, group)
        return collected.get(unit_key(group, place))

    def _of_norm(self, role: Role, group: str, place: Place) -> Tensor | None:
        """(units,) scales or shifts of the normalisation after a place; the mean over all norms of the group where it
        is not clear which one that is."""
        if not self._groups:
            self._groups = {found.name: found for found in self._graph.groups}
        places = self._groups[group].places
        wanted = [p for p in places if p.role == role and p.tensor in self._norms(places)]
        makers = [p for p in places if p.role == "out"]
        if place.role == "scale":
            wanted = [p for p in wanted if _module(p) == _module(place)]
        elif place in makers and len(makers) == len(wanted):
            wanted = [wanted[makers.index(place)]]
        if not wanted:
            return None
        found = torch.stack([unit_matrix(self._tensor(p.tensor), p, group).mean(1) for p in wanted])
        return (found.abs() if role == "scale" else found).mean(0)

    def _norms(self, places: Sequence[Place]) -> set[str]:
        """Tensors that belong to a module with a scale: a bias of a convolution is no norm's shift."""
        modules = {_module(p) for p in places if p.role == "scale"}
        return {p.tensor for p in places if _module(p) in modules}

    def _name_in(self, mapping: Mapping[str, Tensor], name: str) -> str | None:
        """Which of a tensor's names (tied weights have several) the mapping knows it by."""
        info = self._graph.tensors.get(name)
        names = (name, *info.aliases) if info else (name,)
        return next((n for n in names if n in mapping), None)

    def _tensor(self, name: str) -> Tensor:
        found = self._name_in(self._tensors, name)
        if found is None:
            raise InputError(
                f"the graph reads {name!r}, which the given tensors do not have: give the model that was traced"
            )
        tensor = self._tensors[found]
        if found not in self._checked:
            _check(found, tensor)
            self._checked.add(found)
        return tensor

    def _collected(self, need: str) -> Mapping[str, Tensor]:
        if self._statistics is None or need not in self._statistics.values:
            has = sorted(self._statistics.values) if self._statistics else "none were given"
            raise InputError(
                f"the criterion needs the statistic {need!r}, but the statistics hold {has}: "
                f"statistics=prunus.statistics.gather(model, batches, [{need!r}], graph=graph)"
            )
        return self._statistics.values[need]


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; True for integers and for what is empty.

    One pass that makes no copy: NaN and infinities pass through the least and the greatest value, or, where a kind of
    tensor has none (sparse, complex, wrapped), through the sum, which may also have overflowed.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_complex():
        return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
    return bool(torch.isfinite(tensor.sum(dtype=wide))) or bool(torch.isfinite(tensor).all())


def _check(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise InputError(f"{name!r} has no values (it is on the meta device): load the weights before scoring")
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{name!r} holds NaN or infinity in {bad} of its {tensor.numel()} entries: "
            f"the training diverged or the file is damaged; load a sound checkpoint"
        )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model under every name that they have.

    One that a parametrisation computes a tensor of the same shape from stands for that tensor, which is what counts.
    """
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for computed in computed_tensors(model):
        value = computed.value()
        original = computed.original(tuple(value.shape))
        if original is not None:
            same = {name for name, tensor in tensors.items() if tensor is original[1]}
            tensors.update(dict.fromkeys(same, value))
    return tensors
