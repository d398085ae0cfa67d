"""The rows that a model looks up by token id, and the outputs that have one entry per token.

In a normal trace such rows are frozen: their positions carry meaning. Here a model is traced with them free, so that
tied and untied heads, their biases and buffers come out as what must follow when tokens are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import SurgeryError, UnknownNameError
from ..types import Graph, Group
from . import inputs as example
from .recorder import ModuleStack, Recorder, Rule
from .rules import rule_for
from .rules.joins import embedding
from .running import attempt, has_weights
from .trace import _build, _Recording

SAME_VALUES = frozenset(
    f"aten::{name}"
    for name in "view _unsafe_view reshape expand slice select unsqueeze squeeze transpose t permute clone _to_copy "
    "contiguous alias detach".split()
)
"""Operators after which a token id is still that id."""


@dataclass(frozen=True)
class VocabularyGraph:
    """A graph whose groups of kind "vocabulary" are the rows of one table and the outputs that go with them.

    `size` is the number of tokens, `table` the embedding's weight, `inputs` the paths of the inputs that hold its ids,
    `groups` the names of the groups that lose the same tokens.
    """

    graph: Graph
    size: int
    table: str
    inputs: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass
class _Lookups:
    """Which tables were looked up by which inputs, in one run."""

    given: dict[int, frozenset[str]] = field(default_factory=dict)
    tables: dict[str, tuple[int, set[str]]] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)

    def rules(self, func: Any) -> Rule | None:
        name, rule = func._schema.name, rule_for(func)
        if name == "aten::embedding":
            return self._lookup
        return rule if rule is None or name not in SAME_VALUES else self._following(rule)

    def _following(self, rule: Rule) -> Rule:
        def follow(recorder: Recorder, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
            rule(recorder, func, args, kwargs, out)
            if id(args[0]) in self.given and isinstance(out, Tensor):
                self.given[id(out)] = self.given[id(args[0])]

        return follow

    def _lookup(self, recorder: Recorder, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        weight, ids = args[0], args[1]
        origin = recorder.origin(weight)
        if origin is None or id(ids) not in self.given:
            embedding(recorder, func, args, kwargs, out)
            return
        rows, width = recorder.axes(weight)
        recorder.role(weight, 1, "out")
        recorder.set(out, [*recorder.axes(ids), width])
        self.tables.setdefault(origin[0], (rows, set()))[1].update(self.given[id(ids)])


def named_inputs(inputs: Any) -> dict[str, Tensor]:
    """Path -> tensor of the example inputs, as in `InputSpec`."""
    if isinstance(inputs, Tensor):
        return {"0": inputs}
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {str(key): value for key, value in items if isinstance(value, Tensor)}


def with_inputs(inputs: Any, paths: Collection[str], change: Callable[[Tensor], Tensor]) -> Any:
    """The example inputs with the tensors at these paths changed."""
    if isinstance(inputs, Tensor):
        return change(inputs) if "0" in paths else inputs
    if isinstance(inputs, Mapping):
        return {key: change(value) if str(key) in paths else value for key, value in inputs.items()}
    return tuple(change(value) if str(i) in paths else value for i, value in enumerate(inputs))


def trace_vocabulary(
    model: nn.Module, inputs: Any, table: str | None = None, heads: Collection[str] | None = None
) -> VocabularyGraph:
    """Trace with the rows of an embedding free.

    Args:
        model: is only read.
        inputs: as for `trace`.
        table: name of the embedding's weight or module. Default: the largest one that inputs look up directly.
        heads: names of the output layers that have one output per token; () is none. Default: those whose output is an
            output of the model and has as many entries as the table, and those that share the table.

    Raises:
        SurgeryError: no table is looked up by ids from the inputs, or its rows are used otherwise too.
        UnknownNameError: no such table or head.
    """
    found = _Lookups()

    def observe(copied: nn.Module, given: Any, _flag: bool) -> tuple[_Recording, _Lookups]:
        found = _Lookups()
        stack = ModuleStack(copied)
        recorder = Recorder(copied, stack, found.rules)
        for path, tensor in named_inputs(given).items():
            recorder.set(tensor, [recorder.fixed(size, "it comes from the model's input") for size in tensor.shape])
            if not tensor.is_floating_point():
                found.given[id(tensor)] = frozenset((path,))
        with stack.watching(), recorder:
            out = example.call(copied, given)
        leaves = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.dim() and recorder.known(t)]
        found.outputs = [recorder.axes(t)[-1] for t in leaves]
        return _Recording(recorder, []), found

    options = [(True, False), (False, False)] if has_weights(model) else [(True, False)]
    recording, found = attempt(model, inputs, observe, options)
    recorder = recording.recorder
    name = _table(found, recorder, table)
    rows, paths = found.tables[name]
    nodes = {recorder.algebra.find(rows), *_heads(recorder, found, recorder.algebra.size(rows), heads)}
    _check(recorder, nodes, name)
    graph = _build(recording, {}, inputs)
    chosen = {group.name for group in graph.groups if _is_among(group, recorder, nodes)}
    groups = tuple(replace(g, kind="vocabulary") if g.name in chosen else g for g in graph.groups)
    graph = replace(graph, groups=groups, coupled=())
    return VocabularyGraph(graph, recorder.algebra.size(rows), name, tuple(sorted(paths)), tuple(sorted(chosen)))


def _table(found: _Lookups, recorder: Recorder, wanted: str | None) -> str:
    if not found.tables:
        raise SurgeryError(
            "no embedding is looked up by ids that come straight from the inputs: give example_inputs with token ids "
            "(such as {'input_ids': ids})"
        )
    if wanted is None:
        return max(found.tables, key=lambda name: recorder.algebra.size(found.tables[name][0]))
    for name in found.tables:
        if wanted in (name, name.rpartition(".")[0], *recorder.named[name].aliases):
            return name
    raise UnknownNameError.of("table", wanted, found.tables)


def _heads(recorder: Recorder, found: _Lookups, size: int, wanted: Collection[str] | None) -> set[int]:
    """Axes of outputs, one entry per token."""
    algebra = recorder.algebra
    written = {
        algebra.find(named.axes[dim]): named.name
        for named in recorder.named.values()
        for dim, role in named.roles.items()
        if role == "out" and named.is_parameter and algebra.size(named.axes[dim]) == size
    }
    if wanted is None:
        return {node for node in map(algebra.find, found.outputs) if node in written}
    names = {name.rpartition(".")[0]: node for node, name in written.items()}
    names |= {
        alias.rpartition(".")[0]: node for node, name in written.items() for alias in recorder.named[name].aliases
    }
    for name in wanted:
        if name not in names:
            raise UnknownNameError.of("name in heads=", name, names)
    return {names[name] for name in wanted}


def _check(recorder: Recorder, nodes: Collection[int], table: str) -> None:
    for node in nodes:
        reason = recorder.algebra.frozen(node)
        if reason is not None or recorder.algebra.kind(node) != "atom":
            why = reason.text if reason is not None else "they are split or reshaped"
            where = f" ({reason.operator} in {reason.module or 'the model'})" if reason is not None else ""
            raise SurgeryError(f"the rows of {table!r} cannot be removed: {why}{where}")


def _is_among(group: Group, recorder: Recorder, nodes: Collection[int]) -> bool:
    """Whether the group's units are the positions of one of these axes."""
    place = group.places[0]
    return recorder.algebra.find(recorder.named[place.tensor].axes[place.dim]) in nodes
