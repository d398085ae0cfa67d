"""Leave out blocks and branches: the edits, how names move, and the proof.

Deleting a member of a Sequential or ModuleList moves later ones up; what counts or numbers them follows (see
`depth_fields`). Elsewhere a `Bypass` takes the module's place. Every edit can be undone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import SurgeryError
from ..types import Removal
from . import tensors
from .bypass import Bypass
from .depth_fields import Undo, follow_branches, follow_deletions, follow_runs
from .verify import check_against, converted_copy

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def shallower(model: ModuleT, removals: Sequence[Removal]) -> ModuleT:
    """A copy of the model without these modules. It shares the tensors that stay.

    Raises:
        SurgeryError: a module is not there, or cannot be left out.
    """
    result = tensors.copy_with(model, lambda tensor: tensor)
    remove(result, removals)
    return result


def remove(model: nn.Module, removals: Sequence[Removal]) -> Undo:
    """Leave these modules out of the model itself; all or nothing. Returns what undoes it."""
    undo: list[Undo] = []

    def undo_all() -> None:
        for step in reversed(undo):
            step()

    try:
        gone = [(r, _module(model, r.module)) for r in removals if r.how != "run"]
        undo += follow_runs(model, [removal for removal in removals if removal.how == "run"])
        undo += follow_branches(model, [r.module for r in removals if r.how in ("zero", "drop")])
        undo += [_replace(model, removal) for removal in removals if removal.how not in ("delete", "run")]
        for container, places in _deletions(model, removals).items():
            undo += follow_deletions(model, container, places)
            undo.append(_delete(model, container, places))
        left = {id(module) for module in model.modules()}
        for removal, module in gone:
            if id(module) in left:
                raise SurgeryError(f"{removal.module!r} also stands elsewhere in the model: it cannot be left out")
    except BaseException:
        undo_all()
        raise
    return undo_all


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise SurgeryError(f"the model has no module {name!r}; was the plan made for another model?") from error


def _replace(model: nn.Module, removal: Removal) -> Undo:
    path, _, local = removal.module.rpartition(".")
    parent, old = _module(model, path), _module(model, removal.module)
    stand_in = Bypass(
        removal.argument, removal.returned, removal.output, zero=removal.how == "zero", replaced=old
    ).train(old.training)

    def put(module: nn.Module) -> None:
        parent._modules[local] = module

    put(stand_in)
    return lambda: put(old)


def _deletions(model: nn.Module, removals: Iterable[Removal]) -> dict[str, tuple[int, ...]]:
    """Container -> positions of the members that go, innermost containers first."""
    names: dict[str, set[str]] = defaultdict(set)
    for removal in removals:
        if removal.how == "delete":
            container, _, local = removal.module.rpartition(".")
            names[container].add(local)
    found = {}
    for container in sorted(names, key=lambda name: -name.count(".")):
        module = _module(model, container)
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            raise SurgeryError(
                f"{container!r} is a {type(module).__name__}: members can be deleted of a Sequential or ModuleList only"
            )
        found[container] = tuple(i for i, local in enumerate(module._modules) if local in names[container])
    return found


def _delete(model: nn.Module, container: str, places: Sequence[int]) -> Undo:
    members = _module(model, container)._modules
    before = dict(members)
    after = {new: before[old] for old, new in _renamed(list(before), places).items() if new is not None}

    def put(entries: Mapping[str, nn.Module | None]) -> None:
        members.clear()
        members.update(entries)

    put(after)
    return lambda: put(before)


def _renamed(names: Sequence[str], places: Iterable[int]) -> dict[str, str | None]:
    """Old name of each member -> new one, None for those at `places`; names that are numbers move up."""
    gone = set(places)
    numbered = list(names) == [str(i) for i in range(len(names))]
    result: dict[str, str | None] = {}
    for index, name in enumerate(names):
        left = index - sum(place < index for place in gone)
        result[name] = None if index in gone else str(left) if numbered else name
    return result


def renaming(model: nn.Module, removals: Sequence[Removal]) -> Callable[[str], str | None]:
    """Name in the whole model -> name without these modules; None for what is gone. For modules and tensors."""
    moves = {
        container: _renamed(list(_module(model, container)._modules), places)
        for container, places in _deletions(model, removals).items()
    }
    gone = {removal.module for removal in removals if removal.how != "run"}

    def rename(name: str) -> str | None:
        old, new = "", ""
        for part in name.split("."):
            moved = moves.get(old, {}).get(part, part)
            old = f"{old}.{part}" if old else part
            if moved is None or old in gone:
                return None
            new = f"{new}.{moved}" if new else moved
        return new

    return rename


# ------------------------------------------------------------------------------------------------------------- proof


def left_out(model: nn.Module, removals: Sequence[Removal], dtype: torch.dtype) -> nn.Module:
    """A copy of the whole model in which hooks give back the inputs of these modules, or zeros: the reference."""
    copied = converted_copy(model, dtype)
    runs: dict[str, set[int]] = defaultdict(set)
    for removal in removals:
        runs[removal.module].update([removal.run] if removal.how == "run" else ())
    for removal in {r.module: r for r in removals if r.how != "drop"}.values():
        hook = _overruling(removal)
        if removal.how == "run":
            hook = _in_runs(hook, copied, runs[removal.module])
        copied.get_submodule(removal.module).register_forward_hook(hook, with_kwargs=True)
    return copied


def _in_runs(hook: Callable[..., Any], model: nn.Module, chosen: set[int]) -> Callable[..., Any]:
    """The hook in these runs of its module only, counted from the start of each pass of the model."""
    done = 0

    def start(*_: Any) -> None:
        nonlocal done
        done = 0

    def counted(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        nonlocal done
        done += 1
        return hook(module, args, kwargs, out) if done - 1 in chosen else out

    model.register_forward_pre_hook(start)
    return counted


def _overruling(removal: Removal) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        if removal.how == "zero":
            return _with(out, removal.output, lambda value: value * 0)
        given = args[int(removal.argument)] if removal.argument.isdigit() else kwargs[removal.argument]
        return _with(out, removal.output, lambda _: given)

    return hook


def _with(out: Any, position: int, change: Callable[[Any], Any]) -> Any:
    if not isinstance(out, tuple | list):
        return change(out)
    items = list(out)
    items[position] = change(items[position])
    return type(out)(items)


def check_depth(model: nn.Module, shallow: nn.Module, removals: Sequence[Removal], example: Any) -> None:
    """Prove that leaving modules out is the same as overruling their outputs in the whole model.

    Compared as in `check_values`; a model without weights cannot be compared.

    Raises:
        VerificationError: the outputs differ, or the smaller model does not run.
        SurgeryError: the whole model does not run on the example.
    """
    device = tensors.device_of(model)
    if device.type != "meta":
        check_against(lambda dtype: left_out(model, removals, dtype), shallow, device, example)
