"""Model and example inputs to Graph: record, solve the count equations, name the groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError, UnknownNameError
from ..types import Graph, TensorInfo
from . import description
from . import inputs as example
from .algebra import Reason
from .constants import index_constants
from .construction import Construction, join_unread, unseen
from .construction import equations as construction_equations
from .equations import Solution, solve
from .outputs import held
from .parametrized import follow_parametrizations
from .provenance import (
    Equation,
    FromAttribute,
    FromAxis,
    Literal,
    Tree,
    arm,
    functional_bodies_visible,
    layer_equations,
    leaves,
)
from .recorder import ModuleStack, Recorder
from .rules import rule_for
from .running import attempt, has_weights
from .size_reader import SizeReader
from .unread import unread_equations

Keep = Iterable[str | nn.Module | Callable[[str], bool]]


@dataclass
class _Recording:
    recorder: Recorder
    equations: list[Equation]
    factors: list[tuple[Tree, str]] = field(default_factory=list)


def trace(
    model: nn.Module,
    example_inputs: Any,
    keep: Keep = (),
    outputs: str = "keep",
    construction: Construction | None = None,
) -> Graph:
    """Find which units of a model live or die together.

    Args:
        model: any module that runs on the inputs; it is only read. Parameters may lie on the meta device.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Use a batch of two or more where
            you can: an axis of size 1 looks like a broadcast one.
        keep: modules whose outputs stay whole: names, glob patterns ("layer3.*"), modules, or predicates on names;
            also full parameter names.
        outputs: "keep" leaves the model's outputs as they are; "free" lets their axes shrink too.
        construction: laws of the model's constructor; every plan then leads to sizes that some settings give.

    Returns:
        A Graph: `groups`, `unprunable` (each with its reason), `coupled`, and everything needed to count.

    Raises:
        InputError: the arguments are of the wrong kind. UnknownNameError: a name in `keep` does not exist.
        TraceError: the model did not run on the inputs.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if outputs not in ("keep", "free"):
        raise InputError(f"outputs must be 'keep' or 'free', got {outputs!r}")
    example.check(example_inputs)
    kept = resolve_keep(model, keep)

    constants = index_constants(model)

    def observe(copied: nn.Module, given: Any, armed: bool) -> _Recording:
        return _record(copied, given, armed, outputs == "keep", constants)

    metas = [(True, True), (True, False)]
    recording = attempt(
        model, example_inputs, observe, [*metas, (False, True), (False, False)] if has_weights(model) else metas
    )
    return _build(recording, kept, example_inputs, construction)


def resolve_keep(model: nn.Module, keep: Keep) -> dict[str, str]:
    """Parameter names whose output units stay whole -> what the user wrote."""
    modules = dict(model.named_modules())
    names = {id(m): n for n, m in modules.items()}
    parameters = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    result: dict[str, str] = {}
    items = [keep] if isinstance(keep, str | nn.Module) else list(keep)
    for item in items:
        if isinstance(item, nn.Module):
            if id(item) not in names:
                raise InputError(f"keep: this {type(item).__name__} is not a module of the model")
            matches = [names[id(item)]]
        elif isinstance(item, str):
            matches = [n for n in (*modules, *parameters) if n and fnmatch.fnmatchcase(n, item)]
            if not matches:
                raise UnknownNameError.of("name in keep=", item, [n for n in (*modules, *parameters) if n])
        else:
            predicate: Callable[[str], bool] = item  # type: ignore[assignment]
            matches = [n for n in (*modules, *parameters) if n and predicate(n)]
        for match in matches:
            for parameter in parameters:
                if parameter == match or parameter.startswith(f"{match}." if match else ""):
                    result[parameter] = item if isinstance(item, str) else match
    return result


def _record(
    model: nn.Module, inputs: Any, armed: bool, keep_outputs: bool, constants: Mapping[str, tuple[int, ...]]
) -> _Recording:
    stack = ModuleStack(model)
    recorder = Recorder(model, stack, rule_for, constants)
    follow_parametrizations(recorder, model)
    if armed:
        arm(model)
    given = Reason("it comes from the model's input")
    for tensor in tree_leaves(inputs):
        if isinstance(tensor, Tensor):
            recorder.set(tensor, (recorder.algebra.atom(size, given) for size in tensor.shape))
    reader = SizeReader(recorder) if armed else None
    reading = reader.reading() if reader else nullcontext()
    with stack.watching(), functional_bodies_visible() if armed else nullcontext(), recorder, reading:
        out = example.call(model, inputs)
        if keep_outputs:
            _freeze_outputs(recorder, out)
        _follow_training(recorder, model, inputs, keep_outputs)
    equations = list(reader.equations) if reader else []
    equations = layer_equations(recorder, model) + equations + _group_equations(recorder, model)
    equations += unread_equations(recorder, model)
    return _Recording(recorder, equations, reader.factors if reader else [])


def _follow_training(recorder: Recorder, model: nn.Module, inputs: Any, keep_outputs: bool) -> None:
    """Layers that run only in training mode (auxiliary classifiers) must fit the cut model too: where the forward pass
    left parameters unread, one in training mode is followed for their sake. What reads them there is not counted."""
    if all(name in recorder.read for name, named in recorder.named.items() if named.is_parameter):
        return
    calls = len(recorder.calls)
    try:
        out = example.call(model.train(), inputs)
        if keep_outputs:
            _freeze_outputs(recorder, out)
    except Exception:  # many models ask for targets then; what stays unread is frozen
        pass
    finally:
        model.eval()
        del recorder.calls[calls:]


def _freeze_outputs(recorder: Recorder, out: Any) -> None:
    """Outputs stay as they are, but for by-products such as caches and hidden states."""
    reason = Reason("it is the model's output", remedy='trace with outputs="free" to let outputs shrink')
    for tensor in held(out):
        if recorder.known(tensor):
            for axis in recorder.axes(tensor):
                recorder.algebra.freeze(axis, reason)


def _group_equations(recorder: Recorder, model: nn.Module) -> list[Equation]:
    """Numbers of groups of grouped convolutions and norms follow the `groups` attribute of the layer, if it has one."""
    result = []
    modules = dict(model.named_modules())
    for node, tree, module, attribute in recorder.group_equations:
        owner = modules.get(module)
        value = recorder.algebra.size(node)
        source: Tree = tree if isinstance(tree, Tree) else Literal(value)
        if isinstance(owner, (nn.modules.conv._ConvNd, nn.GroupNorm)):
            source = FromAttribute(module, attribute, value)
        result.append(Equation(node, source, "a grouped operator has this many groups", module, ""))
    for node, base in recorder.equal_counts:
        result.append(Equation(node, FromAxis(base), "rows of one tensor are equally long", "", ""))
    return result


# --------------------------------------------------------------------------------------------------------- the graph


def _build(recording: _Recording, kept: dict[str, str], inputs: Any, construction: Construction | None = None) -> Graph:
    recorder, algebra = recording.recorder, recording.recorder.algebra
    for name, asked in kept.items():
        known = recorder.named.get(name)
        if known is not None:
            dims = [d for d, r in known.roles.items() if r in ("out", "scale", "shift")] or [0]
            for dim in dims:
                if dim < len(known.axes):
                    algebra.freeze(known.axes[dim], Reason(f"keep={asked!r} protects it"))
    _freeze_used_otherwise(recorder)
    _freeze_unread(recorder, join_unread(construction, recorder) if construction else set())
    _adopt_orphans(recorder)
    _freeze_orphans(recorder)
    built_with = (
        ()
        if construction is None
        else (*construction_equations(construction, recorder), *unseen(construction, recording.equations))
    )
    solution = solve(algebra, [*recording.equations, *built_with], recorder.multiples)
    _tag_factors(recorder, recording.factors, solution)
    names = description.name_atoms(recorder)
    axis = description.Converter(recorder, names)
    return Graph(
        groups=description.groups_of(recorder, names, axis),
        unprunable=tuple(description.refusals(recorder)),
        coupled=tuple(description.coupled_sets(solution, names)),
        tensors={
            n: TensorInfo(tuple(map(axis, t.axes)), t.itemsize, t.is_parameter, tuple(t.aliases))
            for n, t in recorder.named.items()
        },
        operators=tuple(description.operators(recorder, axis)),
        attributes=tuple(description.attributes(recorder, solution, axis)),
        inputs=example.describe(inputs),
        batch=example.batch_size(inputs),
        uncounted=tuple(sorted(recorder.unknown)),
        selections=tuple(description.selections(recorder, axis)),
        example=inputs,
    )


def _freeze_unread(recorder: Recorder, joined: set[tuple[str, int]]) -> None:
    """What no operator reads may be read another time, in training for example: nobody knows what it meets there,
    except for the dimensions that were `joined` to others."""
    reason = Reason("nothing reads it in this forward pass", remedy="trace with inputs or in a way that use it")
    for name in recorder.named.keys() - recorder.read:
        for dim, axis in enumerate(recorder.named[name].axes):
            if (name, dim) not in joined:
                recorder.algebra.freeze(axis, reason)


def _freeze_used_otherwise(recorder: Recorder) -> None:
    """An index that is renumbered must mean nothing else."""
    for name, axis in recorder.constants.selects.items():
        if name in recorder.constants.used_otherwise:
            recorder.algebra.freeze(axis, Reason(f"{name} selects from it, and is used otherwise too"))


def _tag_factors(recorder: Recorder, factors: list[tuple[Tree, str]], solution: Solution) -> None:
    """An axis whose length the model multiplies by: without a unit the others get another factor."""
    for tree, where in dict.fromkeys(factors):
        for leaf in leaves(tree):
            node = leaf.node if isinstance(leaf, FromAxis) else None
            if isinstance(leaf, FromAttribute):
                node = solution.attributes.get((leaf.module, leaf.name))
            if node is not None:
                recorder.tag_not_neutral(node, where)


def _owned(recorder: Recorder) -> set[int]:
    """Atoms that stand in a parameter."""
    atoms = recorder.algebra.atoms
    return {a for named in recorder.named.values() if named.is_parameter for x in named.axes for a in atoms(x)}


def _adopt_orphans(recorder: Recorder) -> None:
    """A constant tensor whose rows went to several layers is as long as the first of them."""
    algebra, owned = recorder.algebra, _owned(recorder)
    for row, base in recorder.equal_counts:
        if owned.isdisjoint(algebra.atoms(base)) and not owned.isdisjoint(algebra.atoms(row)):
            algebra.unify(base, row)


def _freeze_orphans(recorder: Recorder) -> None:
    """Atoms in no parameter cannot be pruned by slicing anything, and those of a buffer that layers only read
    (coordinates) no layer makes: both stay as they are."""
    algebra = recorder.algebra
    made, stored = set[int](), set[int]()
    for named in recorder.named.values():
        for dim, axis in enumerate(named.axes):
            if not named.is_parameter:
                stored.update(algebra.atoms(axis))
            elif named.roles.get(dim) != "in":
                made.update(algebra.atoms(axis))
    owned = _owned(recorder)
    reason, read_only = Reason("no parameter has it"), Reason("it is stored in a buffer, and layers only read it")
    for node in range(len(algebra)):
        if algebra.find(node) == node and algebra.kind(node) == "atom":
            if node not in owned:
                algebra.freeze(node, reason)
            elif node in stored and node not in made:
                algebra.freeze(node, read_only)
