"""The data that stages hand to each other: frozen, comparable, printable, no behaviour beyond checks.

What a tensor dimension is made of is said by the axis expressions of `prunus.axes`, which are part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import lt
from typing import Any, Literal

from torch import Tensor

from .axes import Axis, Concat, Fixed, Permuted, Product, Units  # noqa: F401 - they are types like the others
from .errors import InputError

Role = Literal["out", "in", "scale", "shift", "statistic", "other"]
"""What a tensor's dimension does in the operator that reads it: rows that make outputs, columns that read inputs,
a norm's scale or shift (a bias is a shift), a running statistic, anything else."""


@dataclass(frozen=True, slots=True)
class Place:
    """One dimension of one named parameter or buffer in which a group's units stand."""

    tensor: str
    dim: int
    axis: Axis
    role: Role = "other"


@dataclass(frozen=True, slots=True)
class Group:
    """Units (channels, heads, neurons ...) that live or die together in all `places` at once.

    `neutral` is False when some operator normalises or averages over the units (softmax, layer norm, mean), so that
    removing a unit is not the same as zeroing it; `why_not_neutral` names that operator. `kind` says what a unit is: a
    name in `prunus.graph.KINDS`.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    neutral: bool = True
    why_not_neutral: str = ""
    kind: str = "channel"


@dataclass(frozen=True, slots=True)
class Coupled:
    """Groups that must keep proportional numbers of units; each may choose its units freely.

    `steps[name] = s` means that the group loses (or keeps) units s at a time, all members by the same number of steps.
    """

    steps: Mapping[str, int]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was left alone and why: the operator, its module and source line, and what the user could do."""

    what: str
    reason: str
    operator: str = ""
    module: str = ""
    source: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A named parameter or buffer of the traced model. `aliases` are other names of the same tensor (tied weights)."""

    axes: tuple[Axis, ...]
    itemsize: int
    is_parameter: bool
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operator:
    """One recorded ATen call. `outputs` holds the axes of each output tensor.

    `multiply_adds` are (coefficient, axes) terms: the operator's multiply-accumulates for the traced example inputs
    are the sum of coefficient times the product of the sizes of the axes.
    `weight` is the name of the parameter that it multiplies with, if any. `reduces` are the dimensions of the first
    argument over which it computes a statistic (mean, softmax, norm) and whose size can change, each with its axis.
    """

    name: str
    module: str
    source: str
    outputs: tuple[tuple[Axis, ...], ...]
    multiply_adds: tuple[tuple[int, tuple[Axis, ...]], ...] = ()
    weight: str = ""
    reduces: tuple[tuple[int, Axis], ...] = ()


@dataclass(frozen=True, slots=True)
class Attribute:
    """A Python int of a module that must follow the size of an axis: `module`.`name` (`name` may be dotted, or end in
    `[i]` for an element of a tuple) becomes the size of `axis`."""

    module: str
    name: str
    axis: Axis


@dataclass(frozen=True, slots=True)
class Selection:
    """A constant index that the model holds, a buffer or plain tensor attribute, and the axis that it selects from."""

    tensor: str
    axis: Axis


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the model was traced with: enough to make such inputs again.

    `tensors` maps a path ("0", "1.mask") to (shape, dtype name, low, high); the values of integer tensors lay in
    [low, high], and the name of a sparse tensor's dtype is followed by its layout ("float32 sparse_coo"). `layout` is
    "tensor", "tuple" or "dict".
    """

    layout: Literal["tensor", "tuple", "dict"]
    tensors: Mapping[str, tuple[tuple[int, ...], str, float, float]]


@dataclass(frozen=True)
class Graph:
    """What is connected in a model: groups of units, the tensors they stand in, and the operators that were run.

    Counting lives in `prunus.graph.counting`: `macs(graph, counts)`, `parameters(graph, counts)`, `size(axis, counts)`,
    `positions(axis, keep)`, where `counts[group name]` is a number of units and `keep[group name]` their indices;
    groups that are not mentioned are whole.
    """

    groups: tuple[Group, ...]
    unprunable: tuple[Refusal, ...]
    coupled: tuple[Coupled, ...]
    tensors: Mapping[str, TensorInfo]
    operators: tuple[Operator, ...]
    attributes: tuple[Attribute, ...]
    inputs: InputSpec
    batch: int
    uncounted: tuple[str, ...] = ()
    selections: tuple[Selection, ...] = ()
    example: Any = field(default=None, compare=False, repr=False)

    def group(self, name: str) -> Group:
        """The group of that name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"no group named {name!r}; the graph has {', '.join(g.name for g in self.groups[:8])} ...")


# ------------------------------------------------------------------------------------------------------------ depth


@dataclass(frozen=True, slots=True)
class Removal:
    """A module that goes, and how.

    "delete" takes it out of its Sequential or ModuleList, so that later ones move up; "bypass" puts in its place a
    module that gives back its input; "zero" one that gives zeros of its input's shape, and "drop", like "bypass", goes
    with a zeroed module that alone reads it. "run" takes away run number `run` of the `own_runs` of a module that
    runs several times: the number that counts such runs, `runs` so far, goes down. `argument` is the input concerned,
    by position ("0") or keyword; `returned` is the length of the tuple that the module returned (0: a tensor),
    `output` the position in it.
    """

    module: str
    how: Literal["delete", "bypass", "zero", "drop", "run"]
    argument: str = "0"
    returned: int = 0
    output: int = 0
    run: int = 0
    own_runs: int = 0
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """A unit of depth: a module that adds residual branches to its own input ("block"), or one such branch ("branch").

    Attributes:
        name: of the module; of a branch the largest module in it.
        removals: the modules that go with it; () where it cannot be removed.
        parameters, macs: what it costs; multiply-accumulates of one sample.
        enters, leaves: (module, argument or output position) where its input can be seen, and what it gives: the output
            of a block, the summand of a branch.
        exact: leaving it out equals zeroing its branches. Not so where it normalises or rectifies the sum.
        why_not: why it cannot be removed; "" where it can.
    """

    name: str
    unit: Literal["block", "branch"]
    removals: tuple[Removal, ...] = ()
    parameters: int = 0
    macs: int = 0
    enters: tuple[str, str] = ("", "0")
    leaves: tuple[str, int] = ("", 0)
    exact: bool = True
    why_not: str = ""


# ------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Statistics:
    """What one pass over data measured, on the CPU. `values[need][key]` is a tensor.

    Needs that belong to parameters have the parameter's name as key and its shape; needs that belong to units have
    `unit_key(group, place)` as key and shape (units,).
    """

    values: Mapping[str, Mapping[str, Tensor]]
    batches: int
    examples: int


def unit_key(group: str, place: Place) -> str:
    """Key of a per-unit statistic of one place of a group."""
    return f"{group} in {place.tensor}[{place.dim}]"


# ------------------------------------------------------------------------------------------------- scores and plans


@dataclass(frozen=True)
class Scores:
    """One importance per unit of each group; higher means keep. `values[group name]` is a float tensor (units,)."""

    criterion: str
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Cut:
    """The units of a group that stay: 0-based, ascending, never empty."""

    group: str
    size: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.keep or not all(map(lt, self.keep, self.keep[1:])):
            raise InputError(f"Cut({self.group!r}): keep must be ascending and not empty, got {self.keep[:8]}")
        if self.keep[0] < 0 or self.keep[-1] >= self.size:
            raise InputError(
                f"Cut({self.group!r}): keep must lie in [0, {self.size}), got {self.keep[0]}..{self.keep[-1]}"
            )


@dataclass(frozen=True, slots=True)
class TensorCut:
    """Positions of one dimension of a named tensor that stay, ascending."""

    tensor: str
    dim: int
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IndexCut:
    """A constant index into an axis of which `keep` of `size` positions stay: what it names of the others goes, and the
    rest gets the new numbers."""

    tensor: str
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A module's attribute and the int that it becomes."""

    module: str
    name: str
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class OperatorShape:
    """The predicted output shapes of one operator after the cut, in the order of the trace."""

    name: str
    module: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Reduction:
    """An operator that computes a statistic over units that the plan removes: its first argument has `size` positions
    in dimension `dim`, of which `keep` stay. `call` counts that module's calls of that operator from 0."""

    name: str
    module: str
    call: int
    dim: int
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """What a model costs. `macs` are multiply-accumulates of one sample, `parameters` unique entries, `bytes` those of
    parameters and buffers in memory."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens that stay: `keep` of `size`, ascending; their new ids are 0, 1, 2 ... `inputs` are the paths of the model
    inputs that hold token ids."""

    size: int
    keep: tuple[int, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Experts that stay, `keep` of `size`, of the mixture whose router has the weight `router`.

    `members` is the path of a ModuleList that loses the others, "" where their weights are slices of tensors."""

    router: str
    size: int
    keep: tuple[int, ...]
    members: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that a cut does, as data: `cuts` say which units of which group stay, the rest follows from them.

    `neutral` is False when some cut group is not neutral (see `Group`): then zeroing units differs from removing them,
    and the model that the cut one must equal also leaves them out of the statistics in `reductions`. Where `vocabulary`
    is given, tokens are removed, and `inputs` hold new ids; `mixtures` lose experts. `depth` are the modules that go
    first: all other names in the plan are those of the model without them. `permanent` are computed (parametrised)
    tensors that become ordinary parameters before anything else; `indices` are renumbered. `example` is not stored: the
    real example inputs, for the numerical check.
    """

    cuts: tuple[Cut, ...]
    tensors: tuple[TensorCut, ...]
    attributes: tuple[AttributeChange, ...]
    shapes: tuple[OperatorShape, ...]
    inputs: InputSpec
    before: Size
    after: Size
    neutral: bool = True
    criterion: str = ""
    reductions: tuple[Reduction, ...] = ()
    vocabulary: Vocabulary | None = None
    mixtures: tuple[Mixture, ...] = ()
    depth: tuple[Removal, ...] = ()
    permanent: tuple[str, ...] = ()
    indices: tuple[IndexCut, ...] = ()
    example: Any = field(default=None, compare=False, repr=False)


# ------------------------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a measured value varied: `low` and `high`, and what they are ("95% Wilson interval", "quartiles")."""

    low: float
    high: float
    kind: str
    n: int


@dataclass(frozen=True)
class Measurement:
    """A value with its unit, how it was obtained, and its spread. `details` holds per-class values, curves and the like
    (plain JSON data). `value` is None when it could not be measured; `how` then says why."""

    name: str
    value: float | None
    unit: str
    how: str
    spread: Spread | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


Measurements = Mapping[str, Measurement]
