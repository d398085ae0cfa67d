"""Units of depth: modules that add residual branches to their own input, and the branches themselves.

A residual join is an addition of two tensors of one shape, one of which is computed from the other: z = x + f(x). A
module whose output is its input plus such branches computes the identity without them, so it can be left out. A branch
can be left out alone when setting the outputs of whole modules to zero makes f(x) zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

from torch import nn

from ..types import Block, Graph, Removal
from .branches import Branch, Joins, joins_of
from .counting import unique_tensors
from .flow import Flow, ModuleCall, flow_of
from .repeats import repeated
from .trace import trace

NORMS = frozenset(
    f"aten::{name}"
    for name in "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit_no_training "
    "_fused_rms_norm".split()
)
"""A block may normalise its sum; without the block its input, which an earlier one normalised, goes on instead."""

IDEMPOTENT = frozenset(f"aten::{name}" for name in "relu relu6 hardtanh clamp clamp_min".split())
"""Applying these twice is applying them once."""

SELECTING = frozenset(f"aten::{name}" for name in "max_pool2d_with_indices max_pool2d max_pool3d_with_indices".split())
"""These give only values that were there."""


def blocks(model: nn.Module, example_inputs: Any, graph: Graph | None = None) -> tuple[Block, ...]:
    """The residual blocks of a model and the branches in them, in the order in which they run.

    Args:
        model: any module that runs on the inputs; only read. Parameters may lie on the meta device.
        example_inputs: as in `prunus.trace`.
        graph: the model's, if it was traced already.

    Returns:
        Every block and branch that can be removed, and with `why_not` those blocks that cannot: where a value inside is
        used elsewhere, where a module runs several times, where the shape changes although others of the class keep it.
        A block with a single branch is listed as a block only.

    Raises:
        InputError, TraceError: as in `prunus.trace`.
    """
    graph = trace(model, example_inputs) if graph is None else graph
    flow = flow_of(model, example_inputs)
    finder = _Finder(model, flow, joins_of(flow))
    costs = _Costs(graph)
    runs = list(repeated(model, flow, finder.repeated))
    inside = tuple(f"{block.leaves[0]}." for _, block in runs)
    order = {call.module: index for index, call in reversed(list(enumerate(flow.calls)))}
    found = [
        (order[block.name], costs.of(block))
        for block in (*finder.blocks(), *finder.branches())
        if not f"{block.name}.".startswith(inside)
    ]
    found += [(index, costs.of_run(block, finder.runs[block.leaves[0]])) for index, block in runs]
    return tuple(block for _, block in sorted(found, key=lambda entry: (entry[0], entry[1].unit)))


@dataclass(frozen=True)
class _Identity:
    """A module call that gives its input back once its branches are gone."""

    argument: str
    output: int
    joins: tuple[int, ...]
    exact: bool


class _Finder:
    def __init__(self, model: nn.Module, flow: Flow, joins: Joins) -> None:
        self.flow, self.joins = flow, joins
        self.modules = dict(model.named_modules())
        self.runs = Counter(call.module for call in flow.calls)
        self.identities: dict[int, _Identity] = {}
        self.reasons: dict[int, str] = {}
        self.repeated: dict[int, _Identity] = {}
        self.hindered: set[int] = set()
        self.owned = self._owned()
        for index, call in enumerate(flow.calls):
            if call.module and self.owned[index]:
                self._examine(index, call)
        self.chosen = self._chosen()

    def _owned(self) -> list[int]:
        """Number of joins that ran in each module call or in calls inside it."""
        counts = [0] * len(self.flow.calls)
        for step in self.joins:
            for call in self.flow.within(self.flow.steps[step].call):
                counts[call] += 1
        return counts

    # blocks

    def blocks(self) -> Iterator[Block]:
        for index in self.chosen:
            yield self._block(self.flow.calls[index], self.identities[index])
        named = {self.flow.calls[i].module for i in self.chosen}
        kinds = {type(self.modules[name]) for name in named} - {nn.Sequential, nn.ModuleList}
        for index, call in enumerate(self.flow.calls):
            alike = type(self.modules[call.module]) in kinds
            if (alike or (index in self.hindered and self._in_stack(call.module))) and call.module not in named:
                named.add(call.module)
                yield Block(call.module, "block", why_not=self.reasons.get(index) or str(self._identity(call)))

    def _block(self, call: ModuleCall, found: _Identity) -> Block:
        how = "delete" if self._in_container(call.module) else "bypass"
        removal = Removal(call.module, how, found.argument, call.returned, found.output)
        return Block(
            call.module,
            "block",
            (removal,),
            enters=(call.module, found.argument),
            leaves=(call.module, found.output),
            exact=found.exact,
        )

    def _in_container(self, name: str) -> bool:
        parent, _, _ = name.rpartition(".")
        return isinstance(self.modules.get(parent), nn.Sequential | nn.ModuleList)

    def _examine(self, index: int, call: ModuleCall) -> None:
        found = self._identity(call)
        if isinstance(found, str):
            self.reasons[index] = found
            return
        if why := self._leak(call, call.outputs[found.output]):
            self.reasons[index] = why
            self.hindered.add(index)
        elif self.runs[call.module] > 1:
            self.repeated[index] = found
            self.reasons[index] = f"it runs {self.runs[call.module]} times in one pass"
            self.hindered.add(index)
        else:
            self.identities[index] = found

    def _identity(self, call: ModuleCall) -> _Identity | str:
        """How the call gives its input back without its branches; else why it does not."""
        why = "it returns no tensor"
        for position, value in call.outputs.items():
            found = self._to_input(call, position, value)
            if isinstance(found, _Identity):
                return found
            why = found
        return why

    def _to_input(self, call: ModuleCall, position: int, value: int) -> _Identity | str:
        flow, given = self.flow, {value: name for name, value in reversed(call.arguments.items())}
        output, passed, joins, exact = value, [], [], True
        while value not in given:
            made = flow.maker[value]
            if made < call.start:
                break
            step = flow.steps[made]
            if made in self.joins and self.joins[made].first >= call.start:
                joins.append(made)
                value = self.joins[made].residual
            elif step.name in NORMS and step.reads:
                value, exact = step.reads[0], False
            elif step.name.rstrip("_") in IDEMPOTENT and len(step.reads) == 1:
                passed.append(step)
                value = step.reads[0]
            else:
                break
        if value not in given or not joins:
            shapes = {prod(flow.shape[v]) for v in call.arguments.values()}
            if prod(flow.shape[output]) not in shapes:
                return "its output has another shape than its input"
            return "its output is not its own input plus residual branches"
        for step in passed:
            if not self._already(value, step.name.rstrip("_"), step.scalars):
                return f"it ends in {step.name}, and its input was not through {step.name} already"
        return _Identity(given[value], position, tuple(joins), exact)

    def _already(self, value: int, name: str, scalars: Sequence[Any]) -> bool:
        """Whether the value came out of this operator, so that applying it again changes nothing."""
        made = self.flow.maker[value]
        while made >= 0 and self.flow.steps[made].name in SELECTING:
            made = self.flow.maker[self.flow.steps[made].reads[0]]
        if made < 0:
            return False
        step = self.flow.steps[made]
        return step.name.rstrip("_") == name and tuple(step.scalars) == tuple(scalars)

    def _leak(self, call: ModuleCall, output: int) -> str:
        """What of the call's inner values is used elsewhere, besides its output."""
        for step in self.flow.steps[call.start : call.end]:
            for value in step.makes:
                if value == output:
                    continue
                later = [r for r in self.joins.readers[value] if r >= call.end]
                if later or value in self.flow.used:
                    where = self.flow.calls[self.flow.steps[later[0]].call].module if later else "the model's output"
                    return f"a value of {step.name} inside it is used in {where or 'the model'}, too"
        return ""

    def _chosen(self) -> list[int]:
        """Of nested candidates the right one: members of a stack of like modules with joins of their own, and where
        there are none the innermost modules."""
        calls = self.flow.calls
        chosen = self._with_own_joins(i for i in self.identities if self._in_stack(calls[i].module))
        kinds = {type(self.modules[calls[i].module]) for i in chosen}
        around = {outer for i in chosen for outer in self.flow.within(i)}
        rest = [
            i
            for i in self.identities
            if i not in around and not any(type(self.modules[calls[c].module]) in kinds for c in self.flow.within(i))
        ]
        return sorted([*chosen, *self._with_own_joins(rest)])

    def _in_stack(self, name: str) -> bool:
        """Whether the module stands in a Sequential or ModuleList, alone or with others of its class."""
        if not self._in_container(name):
            return False
        members = list(self.modules[name.rpartition(".")[0]].children())
        return len(members) == 1 or sum(type(m) is type(self.modules[name]) for m in members) > 1

    def _with_own_joins(self, candidates: Iterable[int]) -> list[int]:
        """Those with a join that no inner candidate has."""
        given = set(candidates)
        owner: dict[int, int] = {}
        for join in self.joins:
            call = next((c for c in self.flow.within(self.flow.steps[join].call) if c in given), None)
            if call is not None:
                owner[join] = call
        return sorted(set(owner.values()))

    # branches

    def branches(self) -> Iterator[Block]:
        whole = {i: len(self.identities[i].joins) for i in self.chosen}
        for join, step in ((j, self.flow.steps[j]) for j in self.joins):
            summands = self.joins[join].summands
            around = next((c for c in self.flow.within(step.call) if c in whole), None)
            if around is not None and whole[around] == 1 and len(summands) == 1:
                continue
            for branch in summands:
                found = self._branch(branch)
                if found is not None:
                    yield found

    def _branch(self, branch: Branch) -> Block | None:
        """The branch as a unit, if zeroing whole modules makes it zero."""
        calls = self.joins.dead_calls(branch, lambda name: any(True for _ in self.modules[name].parameters()))
        if not calls or any(self.runs[self.flow.calls[c].module] > 1 for c in calls):
            return None
        exits = self.joins.exits(branch, calls)
        if not exits:
            return None
        removals = []
        for index in calls:
            call = self.flow.calls[index]
            argument = next(iter(call.arguments), None)
            output = next(iter(call.outputs), None)
            if argument is None or output is None:
                return None
            how = "zero" if index in exits else "drop"
            removals.append(Removal(call.module, how, argument, call.returned, output))
        entered = self._entered(branch, calls)
        left = self.flow.calls[max(exits)]
        if entered is None:
            return None
        sizes = {i: sum(p.numel() for p in self.modules[self.flow.calls[i].module].parameters()) for i in calls}
        largest = max(sizes, key=lambda i: sizes[i])
        return Block(
            self.flow.calls[largest].module,
            "branch",
            tuple(removals),
            enters=entered,
            leaves=(left.module, next(iter(left.outputs))),
        )

    def _entered(self, branch: Branch, calls: Sequence[int]) -> tuple[str, str] | None:
        """Module and argument at which the branch's input can be seen: a module of the branch, or one before them."""
        for index in (*sorted(calls), *range(min(calls), -1, -1)):
            call = self.flow.calls[index]
            for name, value in call.arguments.items():
                if value == branch.residual:
                    return call.module, name
        return None


class _Costs:
    """Parameters and multiply-accumulates below each module path, from the graph."""

    def __init__(self, graph: Graph) -> None:
        self._batch = graph.batch
        self._parameters: Counter[str] = Counter()
        self._macs: Counter[str] = Counter()
        for name, info in unique_tensors(graph).items():
            if info.is_parameter:
                paths = set.intersection(*(set(_prefixes(n.rpartition(".")[0])) for n in (name, *info.aliases)))
                self._parameters.update(dict.fromkeys(paths, prod(axis.size for axis in info.axes)))
        for operator in graph.operators:
            count = sum(c * prod(axis.size for axis in axes) for c, axes in operator.multiply_adds)
            if count:
                self._macs.update(dict.fromkeys(_prefixes(operator.module), count))

    def of(self, block: Block) -> Block:
        names = [removal.module for removal in block.removals] or [block.name]
        return replace(
            block,
            parameters=sum(self._parameters[name] for name in names),
            macs=sum(self._macs[name] for name in names) // self._batch,
        )

    def of_run(self, block: Block, runs: int) -> Block:
        """One of so many runs of a module: it costs no parameters."""
        return replace(block, macs=self._macs[block.leaves[0]] // runs // self._batch)


def without(graph: Graph, modules: Iterable[str], runs: Mapping[str, Fraction] | None = None) -> Graph:
    """What is left to count of a graph when these modules do not run, or run less often.

    Args:
        graph: of the whole model.
        modules: names of those that go.
        runs: names of modules that run several times -> share of their runs that go.
    """
    gone = frozenset(modules)

    def stays(path: str) -> bool:
        return gone.isdisjoint(_prefixes(path))

    left = [operator for operator in graph.operators if stays(operator.module)]
    for name, share in (runs or {}).items():
        mine = [index for index, operator in enumerate(left) if name in _prefixes(operator.module)]
        dropped = set(mine[len(mine) - int(len(mine) * share) :])
        left = [operator for index, operator in enumerate(left) if index not in dropped]
    return replace(
        graph,
        operators=tuple(left),
        tensors={
            name: info
            for name, info in graph.tensors.items()
            if any(stays(each.rpartition(".")[0]) for each in (name, *info.aliases))
        },
    )


def _prefixes(path: str) -> Iterator[str]:
    """ "a.b.c", "a.b", "a"."""
    while path:
        yield path
        path = path.rpartition(".")[0]
