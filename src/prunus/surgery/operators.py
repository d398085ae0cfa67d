"""Compare the output shapes of every operator of a cut model with those that its plan predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..errors import TraceError, VerificationError
from ..graph.running import BY_MASK
from ..types import OperatorShape, Plan
from .examples import example_of, untouched_randomness

Recorder = Callable[[nn.Module, Any], Sequence[OperatorShape]]
"""Runs a model on inputs and returns the output shapes of every operator, in order."""

COPIES = frozenset(f"aten::{name}" for name in "clone contiguous _to_copy copy_ copy".split())
"""Operators that only lay out memory: a smaller tensor may need more or fewer of them."""

RESHAPES = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}
"""Which of these a reshape becomes depends on whether its input is contiguous."""

VIEWS = frozenset(f"aten::{name}" for name in "view expand t transpose unsqueeze squeeze".split())
"""Where a smaller tensor runs more or fewer of these, they are not compared: what reads them is."""


FOLDED = frozenset(f"aten::{name}" for name in "mm addmm bmm baddbmm add mul sum unsqueeze squeeze permute".split())
"""What a matrix product over more than two dimensions may become; einsum multiplies where an axis has one position."""


SELECTING = frozenset(
    """
    aten::nonzero aten::nonzero_numpy aten::masked_select aten::_unique2 aten::unique_dim aten::unique_consecutive
    aten::repeat_interleave torchvision::nms
    """.split()
)
"""Operators that give as many entries as the values in their input say."""

INDEX = ("aten::index", BY_MASK)


def check_shapes(cut: nn.Module, plan: Plan, record: Recorder) -> None:
    """Trace the cut model and compare the output shapes of every operator with `plan.shapes`.

    The two sequences are aligned by module path and operator name, since a model that caches, or a tensor that became
    contiguous, may add or drop an operator elsewhere. From the first operator on whose output is as long as its values
    say, as the boxes of a detector are, other values give other shapes: then the model's outputs have to be compared.
    """
    if not plan.shapes:
        return
    with untouched_randomness(cut):
        try:
            recorded = record(cut, example_of(plan))
        except TraceError as error:
            raise VerificationError(f"the cut model does not run: {error.__cause__ or error}") from error
    expected, found = (_by_module(operators) for operators in _comparable(plan.shapes, recorded))
    for module in (*expected, *(m for m in found if m not in expected)):
        _check_module(module, expected.get(module, {}), found.get(module, {}))


def _comparable(
    expected: Sequence[OperatorShape], found: Sequence[OperatorShape]
) -> tuple[Sequence[OperatorShape], Sequence[OperatorShape]]:
    """Both up to the first operator that selects by values. Which `x[i]` is by a mask only the second one tells."""
    indices = [operator.name for operator in found if operator.name in INDEX]
    first = indices.index(BY_MASK) if BY_MASK in indices else -1
    return _before_selecting(expected, first), _before_selecting(found, first)


def _before_selecting(operators: Sequence[OperatorShape], indices: int) -> Sequence[OperatorShape]:
    seen = 0
    for number, operator in enumerate(operators):
        if operator.name in SELECTING or (operator.name in INDEX and seen == indices):
            return operators[:number]
        seen += operator.name in INDEX
    return operators


_Calls = dict[str, list[tuple[tuple[int, ...], ...]]]


def _check_module(module: str, expected: _Calls, found: _Calls) -> None:
    """Compare what one module ran with what it was to run.

    A matrix product folds into other operators where sizes or strides changed; then the shapes of those are not
    compared one by one, only the one that the module ends with.
    """
    where = f"module {module!r}"
    changed = {n for n in (*expected, *found) if len(expected.get(n, ())) != len(found.get(n, ()))}
    for name in changed - VIEWS - FOLDED:
        times = len(expected.get(name, ())), len(found.get(name, ()))
        raise VerificationError(f"operator {name} in {where} was to run {times[0]} times, but runs {times[1]} times")
    skipped = VIEWS | FOLDED if changed & FOLDED else changed
    if changed & FOLDED and _last(expected) != _last(found):
        raise VerificationError(f"{where} was to end with shape {_last(expected)}, but ends with {_last(found)}")
    for name in expected.keys() - skipped - {_END}:
        for index, (want, have) in enumerate(zip(expected[name], found[name])):
            if want != have and not (name in VIEWS | FOLDED and _without_ones(want) == _without_ones(have)):
                call = f" (call {index + 1})" if len(expected[name]) > 1 else ""
                raise VerificationError(
                    f"operator {name} in {where}{call} was to give shape {_text(want)}, but gives {_text(have)}"
                )


def _without_ones(shapes: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Where an axis of one position stands is of no consequence; einsum puts it elsewhere than a longer one."""
    return [[size for size in shape if size != 1] for shape in shapes]


_END = "the end"


def _by_module(operators: Sequence[OperatorShape]) -> dict[str, _Calls]:
    """Module -> operator -> output shapes of its calls, in order; copies left out, reshapes under one name."""
    modules: dict[str, _Calls] = {}
    for operator in operators:
        calls = modules.setdefault(operator.module, {})
        if operator.name not in COPIES:
            calls.setdefault(RESHAPES.get(operator.name, operator.name), []).append(operator.shapes)
        calls[_END] = [operator.shapes]
    return modules


def _last(calls: _Calls) -> str:
    return _text(calls[_END][0]) if _END in calls else "nothing"


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)
