"""Apply a plan: the one place that makes a model smaller.

Two steps. `stage` computes everything that will change, from the model and the plan, and writes nothing. Then a copy of
the model is made with the new tensors in it, its attributes are set, and it is verified. With `inplace=True` the staged
values are committed to the model itself only after that; a failure in the middle of the commit undoes what was done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, SurgeryError
from ..graph.caches import drop_caches
from ..graph.parametrized import plain_name
from ..types import AttributeChange, Plan
from . import attributes, tensors
from .depth import check_depth, remove, shallower
from .examples import example_of
from .layers import Resized, is_known, mended, refresh, shapes_of
from .parametrized import check_computed, computed_shapes, make_permanent, rescaled_lengths, with_permanent
from .verify import Verified
from .verify import verify as verify_cut

ModuleT = TypeVar("ModuleT", bound=nn.Module)

PLANS = "prunus_plans"
"""Attribute of a cut model that holds the plans that made it, oldest first (`plans_of` reads it)."""


class _Plans(tuple[Plan, ...]):
    """Plans are never changed, so copies of the model share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plans:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


@dataclass(frozen=True)
class Staged:
    """Everything that a plan changes in one model, computed and not yet written.

    `tensors` maps a name to the old and the new tensor (one entry per tensor, however many names it has); `attributes`
    are (module path, attribute path, new value); `members` are (path of a ModuleList, members that stay).
    """

    tensors: Mapping[str, tuple[Tensor, Tensor]]
    attributes: tuple[tuple[str, str, Any], ...]
    members: tuple[tuple[str, tuple[int, ...]], ...] = ()


def plans_of(model: nn.Module) -> tuple[Plan, ...]:
    """The plans that were applied to this model, oldest first; () for a model that was never cut."""
    return tuple(getattr(model, PLANS, ()))


def remember(result: ModuleT, model: nn.Module, plan: Plan) -> ModuleT:
    """Say that `plan` made `result` from `model`."""
    setattr(result, PLANS, _Plans((*plans_of(model), replace(plan, example=None))))
    return result


def apply(model: ModuleT, plan: Plan, inplace: bool = False, *, verify: bool = True) -> ModuleT:
    """Remove what the plan says from the model's tensors, and mend its attributes.

    Args:
        model: the model that the plan was made for, dense as it was then. Left exactly as it is unless `inplace`.
        plan: from `prunus.plan`, or read with `prunus.from_json`. Its `depth` goes first, then its cuts.
        inplace: change `model` itself. All or nothing: on any error it is exactly as before. Parameters that are cut
            become new objects without gradients, so build the optimiser afterwards.
        verify: trace the result and compare every operator's shape with the plan, and its outputs with those of the
            dense model in which what was removed is zero and has no part in any mean, norm or softmax.

    Returns:
        An ordinary module of the same class, in the same mode and on the same device. Unless `inplace` it shares no
        tensor with `model`. Its attribute `prunus_plans` holds the plans that made it, which `prunus.save` writes.

    Raises:
        SurgeryError: the plan does not fit this model, or a tensor is of a kind that cannot be cut.
        VerificationError: the result differs from what the plan predicts.
    """
    return applied(model, plan, inplace, verify=verify)[0]


def applied(model: ModuleT, plan: Plan, inplace: bool, *, verify: bool) -> tuple[ModuleT, Verified | None]:
    """`apply`, and what was proven of the result; None without `verify`."""
    whole: ModuleT = model
    if isinstance(plan, Plan):
        whole = with_permanent(whole, plan.permanent) if plan.permanent else whole
        whole = shallower(whole, plan.depth) if plan.depth else whole
    staged = stage(whole, plan)
    if inplace and not verify:
        _commit_all(model, plan, staged)
        return model, None
    result = _build(whole, staged, share_rest=inplace)
    if verify and plan.depth:
        check_depth(model, whole, plan.depth, example_of(plan))
    verified = verify_cut(whole, result, plan) if verify else None
    if inplace:
        _commit_all(model, plan, staged)
        return model, verified
    return remember(result, model, plan), verified


def _commit_all(model: nn.Module, plan: Plan, staged: Staged) -> None:
    """Parametrisations, depth and width in the model itself, or none of them."""
    history = _Plans((*plans_of(model), replace(plan, example=None)))
    if not plan.depth and not plan.permanent:
        _commit(model, staged, history)
        drop_caches(model)
        return
    undo = [make_permanent(model, plan.permanent)]
    try:
        undo.append(remove(model, plan.depth))
        _commit(model, stage(model, plan), history)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    drop_caches(model)


# ------------------------------------------------------------------------------------------------------------- stage


def stage(model: nn.Module, plan: Plan) -> Staged:
    """Check the plan against the model and compute every new tensor and attribute. Writes nothing.

    Raises:
        SurgeryError: says which tensor or attribute does not fit, and why.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(plan, Plan):
        raise InputError(
            f"plan must be a prunus Plan, got {type(plan).__name__}; prunus.plan(graph, scores, ...) makes one"
        )
    keeps = _keeps(model, plan)
    new = {**_with_computed(model, keeps, _sliced(model, keeps)), **_renumbered(model, plan)}
    planned = _planned(model, plan)
    values = {**planned, **_mended(model, plan, keeps, new, planned)}
    changed = tuple((module, name, value) for (module, name), value in values.items())
    return Staged(new, changed, tuple(_members(model, plan)))


def _members(model: nn.Module, plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Lists of expert modules that lose some, checked."""
    for mixture in plan.mixtures:
        if mixture.members:
            found = dict(model.named_modules()).get(mixture.members)
            if not isinstance(found, nn.ModuleList) or len(found) != mixture.size:
                raise SurgeryError(
                    f"the plan removes members of {mixture.members!r}, a ModuleList of {mixture.size}; the model has "
                    f"{'none' if found is None else type(found).__name__} there: was it already cut?"
                )
            yield mixture.members, mixture.keep


def _keep_members(model: nn.Module, path: str, keep: tuple[int, ...]) -> Callable[[], None]:
    """Leave only these members in a list; returns what undoes it."""
    holder = model.get_submodule(path)
    old = dict(holder._modules)
    holder._modules = {str(new): old[str(index)] for new, index in enumerate(keep)}
    return lambda: setattr(holder, "_modules", old)


def _keeps(model: nn.Module, plan: Plan) -> dict[str, dict[int, tuple[int, ...]]]:
    """Kept positions per tensor and dimension, checked against the model."""
    keeps: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    names: dict[int, str] = {}
    for cut in plan.tensors:
        tensor = tensors.find(model, cut.tensor)
        if reason := tensors.why_uncuttable(model, cut.tensor, tensor):
            raise SurgeryError(reason)
        if cut.dim >= tensor.dim() or tensor.shape[cut.dim] != cut.size:
            raise SurgeryError(
                f"the plan cuts dimension {cut.dim} of {cut.tensor!r} from size {cut.size}, but the tensor has shape "
                f"{tuple(tensor.shape)}: apply the plan to the model it was made for, once"
            )
        if not cut.keep or cut.keep[-1] >= cut.size or cut.keep[0] < 0:
            raise SurgeryError(f"the plan keeps positions outside [0, {cut.size}), or none, of {cut.tensor!r}")
        name = names.setdefault(id(tensor), cut.tensor)  # a tied tensor is cut once, whatever name the plan gives it
        if keeps[name].setdefault(cut.dim, cut.keep) != cut.keep:
            raise SurgeryError(f"the plan cuts {cut.tensor!r}, dimension {cut.dim}, in two different ways")
    return keeps


def _sliced(model: nn.Module, keeps: Mapping[str, Mapping[int, tuple[int, ...]]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The old and the new tensor of each name."""
    indices = {id(keep): torch.tensor(keep) for keep in _distinct(keeps)}
    return {
        name: (old := tensors.find(model, name), tensors.sliced(old, {d: indices[id(k)] for d, k in dims.items()}))
        for name, dims in keeps.items()
    }


def _renumbered(model: nn.Module, plan: Plan) -> dict[str, tuple[Tensor, Tensor]]:
    """Constant indices before and after, checked."""
    new: dict[str, tuple[Tensor, Tensor]] = {}
    for cut in plan.indices:
        old = tensors.find(model, cut.tensor)
        values = [int(value) for value in old.flatten()] if old.dim() == 1 and not old.is_floating_point() else []
        if not values or not all(-cut.size <= value < cut.size for value in values):
            raise SurgeryError(
                f"the plan renumbers {cut.tensor!r} as an index into {cut.size} positions, but it holds "
                f"{values[:8] or tuple(old.shape)}: was the model already cut?"
            )
        place = {position: number for number, position in enumerate(cut.keep)}
        stays = [place[value % cut.size] for value in values if value % cut.size in place]
        new[cut.tensor] = old, tensors.converted(old, lambda data, stays=stays: data.new_tensor(stays))
    return new


def _with_computed(
    model: nn.Module,
    keeps: Mapping[str, Mapping[int, tuple[int, ...]]],
    new: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, tuple[Tensor, Tensor]]:
    """The new tensors, and the lengths of weight norms that lose something; parametrised tensors are checked."""
    if not any("parametrizations" in name for name in new):
        return new
    names = {id(tensor): name for name, tensor in tensors.named_tensors(model).items()}
    olds = {id(old): old for old in tensors.named_tensors(model).values()}
    changed = {id(old): cut for old, cut in new.values()}
    kept = {id(old): keeps[name] for name, (old, _) in new.items()}
    known = {id(old): name for name, (old, _) in new.items()}
    scaled = rescaled_lengths(model, changed, kept)
    new = {**new, **{known.get(i, names[i]): (olds[i], tensor) for i, tensor in scaled.items()}}
    check_computed(model, {**changed, **scaled}, kept)
    return new


def _distinct(keeps: Mapping[str, Mapping[int, tuple[int, ...]]]) -> Iterable[tuple[int, ...]]:
    """The index tuples, each object once: many tensors share one."""
    return {id(keep): keep for dims in keeps.values() for keep in dims.values()}.values()


def _planned(model: nn.Module, plan: Plan) -> dict[tuple[str, str], int]:
    """The plan's attribute changes, checked: each must have the old value, and be changed in one way only.

    One that is None was left to what it stands for, which is the old value.
    """
    values: dict[tuple[str, str], int] = {}
    for change in plan.attributes:
        found = attributes.read(_module(model, change), change.name)
        if found not in (change.old, None):
            raise SurgeryError(
                f"{change.module}.{change.name} is {found!r}, but the plan expects {change.old}: "
                "was the model already cut?"
            )
        if values.setdefault((change.module, change.name), change.new) != change.new:
            raise SurgeryError(f"the plan sets {change.module}.{change.name} to two different values")
    return values


def _module(model: nn.Module, change: AttributeChange) -> nn.Module:
    try:
        return model.get_submodule(change.module)
    except AttributeError as error:
        raise SurgeryError(f"the plan changes {change.module}.{change.name}, but there is no such module") from error


def _mended(
    model: nn.Module,
    plan: Plan,
    keeps: Mapping[str, Mapping[int, tuple[int, ...]]],
    new: Mapping[str, tuple[Tensor, Tensor]],
    planned: Mapping[tuple[str, str], int],
) -> dict[tuple[str, str], Any]:
    """Attributes of known layers that follow from the new shapes, checked against what the plan sets itself."""
    changed = {id(old): (cut, keeps.get(name, {}).get(0)) for name, (old, cut) in new.items()}
    outputs = {operator.module: operator.shapes[0] for operator in plan.shapes if operator.shapes}
    by_module: dict[str, dict[str, int]] = defaultdict(dict)
    for (module, name), value in planned.items():
        by_module[module][name] = value
    values: dict[tuple[str, str], Any] = {}
    for path, layer in model.named_modules():
        if not is_known(layer):
            continue
        mine = by_module.get(path, {})
        local = dict(layer.named_parameters(remove_duplicate=False)) | dict(layer.named_buffers(remove_duplicate=False))
        cut = any(id(tensor) in changed for tensor in local.values())
        if not (cut or mine or (not local and path in outputs)):
            continue
        kept = {name: keep for name, t in local.items() if (keep := changed.get(id(t), (t, None))[1]) is not None}
        kept |= {plain_name(name): keep for name, keep in kept.items() if not name.endswith("original0")}
        shapes = shapes_of(layer, lambda t: tuple(changed[id(t)][0].shape if id(t) in changed else t.shape))
        shapes |= computed_shapes(layer, {identity: cut for identity, (cut, _) in changed.items()})
        try:
            changes = mended(Resized(layer, shapes, kept, mine, outputs.get(path)))
        except ValueError as error:
            raise SurgeryError(f"{path}: {error}") from error
        for name, value in changes.items():
            if mine.get(name, value) != value:
                raise SurgeryError(f"{path}.{name}: the plan sets {mine[name]}, but its cut tensors make it {value}")
            values[path, name] = value
    return values


# ------------------------------------------------------------------------------------------------------------- write


def _build(model: ModuleT, staged: Staged, *, share_rest: bool) -> ModuleT:
    """A copy of the model with the staged values in it. With `share_rest` it shares the tensors that are not cut."""
    new = {id(old): cut for old, cut in staged.tensors.values()}
    result = tensors.copy_with(model, lambda tensor: new.get(id(tensor), tensor if share_rest else None))
    for path, name, value in staged.attributes:
        attributes.write(result.get_submodule(path), name, value)
    for path, keep in staged.members:
        _keep_members(result, path, keep)
    _refresh_all(result)
    return result


def _commit(model: nn.Module, staged: Staged, history: _Plans) -> None:
    """Write the staged values into the model itself; on any error undo what was written and raise."""
    olds = [old for old, _ in staged.tensors.values()]
    hidden = tensors.hidden_holders(model, olds)
    for name, (old, _) in staged.tensors.items():
        if id(old) in hidden:
            raise SurgeryError(f"{name!r} also stands in the Python container {hidden[id(old)]!r}: use inplace=False")
    holders = tensors.holders(model, olds)
    undo: list[Callable[[], None]] = []
    try:
        for old, new in staged.tensors.values():
            for module, local in holders[id(old)]:
                setattr(module, local, new)
                undo.append(lambda module=module, local=local, old=old: setattr(module, local, old))
        for path, name, value in staged.attributes:
            undo.append(attributes.write(model.get_submodule(path), name, value))
        for path, keep in staged.members:
            undo.append(_keep_members(model, path, keep))
        _refresh_all(model)
        setattr(model, PLANS, history)
    except BaseException:
        for step in reversed(undo):
            step()
        _refresh_all(model)
        raise


def _refresh_all(model: nn.Module) -> None:
    for layer in model.modules():
        refresh(layer)
