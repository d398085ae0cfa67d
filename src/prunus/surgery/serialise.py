"""Plans as JSON and back, exactly: `from_json(to_json(plan)) == plan`.

Kept positions are written as ranges ("0-7,12,14-15"), which keeps a plan of a large network small and readable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from ..errors import InputError, StoredFileError
from ..types import (
    AttributeChange,
    Cut,
    IndexCut,
    InputSpec,
    Mixture,
    OperatorShape,
    Plan,
    Reduction,
    Removal,
    Size,
    TensorCut,
    Vocabulary,
)

FORMAT, FORMAT_WITH_DEPTH, FORMAT_WITH_INDICES = "prunus.plan/1", "prunus.plan/2", "prunus.plan/3"
"""A plan that leaves blocks out, or makes parametrised tensors permanent, is of the second format, and one that
renumbers indices of the third, so that versions that do not know of it refuse it."""

FORMATS = (FORMAT, FORMAT_WITH_DEPTH, FORMAT_WITH_INDICES)

T = TypeVar("T")

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def to_json(plan: Plan) -> str:
    """The plan as one JSON object. Its real example inputs are not written."""
    before_cuts = plan.depth or plan.permanent
    data = {
        "format": FORMAT_WITH_INDICES if plan.indices else FORMAT_WITH_DEPTH if before_cuts else FORMAT,
        "criterion": plan.criterion,
        "neutral": plan.neutral,
        "before": asdict(plan.before),
        "after": asdict(plan.after),
        "inputs": {
            "layout": plan.inputs.layout,
            "tensors": {path: [list(shape), *rest] for path, (shape, *rest) in plan.inputs.tensors.items()},
        },
        **({"depth": [asdict(removal) for removal in plan.depth]} if before_cuts else {}),
        **({"permanent": list(plan.permanent)} if plan.permanent else {}),
        **({"indices": [[i.tensor, i.size, ranges(i.keep)] for i in plan.indices]} if plan.indices else {}),
        "cuts": [{"group": c.group, "size": c.size, "keep": ranges(c.keep)} for c in plan.cuts],
        "tensors": [{"tensor": t.tensor, "dim": t.dim, "size": t.size, "keep": ranges(t.keep)} for t in plan.tensors],
        "attributes": [asdict(change) for change in plan.attributes],
        "reductions": [[r.name, r.module, r.call, r.dim, r.size, ranges(r.keep)] for r in plan.reductions],
        "vocabulary": plan.vocabulary
        and {"size": plan.vocabulary.size, "keep": ranges(plan.vocabulary.keep), "inputs": plan.vocabulary.inputs},
        "mixtures": [[m.router, m.size, ranges(m.keep), m.members] for m in plan.mixtures],
        "shapes": [[o.name, o.module, [list(shape) for shape in o.shapes]] for o in plan.shapes],
    }
    return json.dumps(data, indent=None, separators=(", ", ": "), ensure_ascii=False)


def from_json(text: str, *, source: str = "the plan") -> Plan:
    """The plan that `to_json` wrote.

    Args:
        text: JSON.
        source: what to call it in an error, such as the file's name.

    Raises:
        StoredFileError: not JSON, another format, or a field that is missing or of the wrong kind: names it.
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError) as error:
        raise StoredFileError(f"{source} is not valid JSON: {error}") from error
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found not in FORMATS:
        raise StoredFileError(
            f"{source} has the format {found!r}; this version of prunus reads {', '.join(map(repr, FORMATS))}"
        )
    if found != FORMAT_WITH_DEPTH:
        data = {"depth": [], **data}
    data = {"permanent": [], "indices": [], **data}
    return Plan(**{name: _field(source, data, name, read) for name, read in _FIELDS.items()})


def ranges(keep: Sequence[int]) -> str:
    """Ascending positions as ranges.

    >>> ranges((0, 1, 2, 5, 7, 8))
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for position in keep:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def positions(text: str) -> tuple[int, ...]:
    """The positions that `ranges` wrote.

    >>> positions("0-2,5,7-8")
    (0, 1, 2, 5, 7, 8)

    Raises:
        ValueError: the text is not such a list.
    """
    kept: list[int] = []
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise ValueError(f"{piece!r} is neither a position nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or (kept and first <= kept[-1]):
            raise ValueError(f"positions must ascend, but {piece!r} does not")
        kept.extend(range(first, last + 1))
    return tuple(kept)


def _field(source: str, data: dict[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    if name not in data:
        raise StoredFileError(f"{source} has no field {name!r}")
    try:
        return read(data[name])
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, InputError) as error:
        raise StoredFileError(f"{source}: the field {name!r} is malformed ({type(error).__name__}: {error})") from error


def _is(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _items(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    return lambda value: tuple(read(item) for item in _is(list, value))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(_is(int, size) for size in _is(list, value))


def _size(value: Any) -> Size:
    return Size(_is(int, value["parameters"]), _is(int, value["macs"]), _is(int, value["bytes"]))


def _cut(value: Any) -> Cut:
    return Cut(_is(str, value["group"]), _is(int, value["size"]), positions(value["keep"]))


def _tensor_cut(value: Any) -> TensorCut:
    keep, size = positions(value["keep"]), _is(int, value["size"])
    if keep[-1] >= size:
        raise ValueError(f"{value['tensor']!r} keeps position {keep[-1]} of {size}")
    return TensorCut(_is(str, value["tensor"]), _is(int, value["dim"]), size, keep)


def _attribute(value: Any) -> AttributeChange:
    return AttributeChange(
        _is(str, value["module"]), _is(str, value["name"]), _is(int, value["old"]), _is(int, value["new"])
    )


def _removal(value: Any) -> Removal:
    how = value["how"]
    if how not in ("delete", "bypass", "zero", "drop", "run"):
        raise ValueError(f"how is {how!r}, expected 'delete', 'bypass', 'zero', 'drop' or 'run'")
    return Removal(
        _is(str, value["module"]),
        how,
        _is(str, value["argument"]),
        _is(int, value["returned"]),
        _is(int, value["output"]),
        *(_is(int, value.get(name, 0)) for name in ("run", "own_runs", "runs")),
    )


def _operator(value: Any) -> OperatorShape:
    name, module, shapes = value
    return OperatorShape(_is(str, name), _is(str, module), _items(_shape)(shapes))


def _reduction(value: Any) -> Reduction:
    name, module, call, dim, size, keep = value
    return Reduction(_is(str, name), _is(str, module), _is(int, call), _is(int, dim), _is(int, size), positions(keep))


def _vocabulary(value: Any) -> Vocabulary | None:
    if value is None:
        return None
    inputs = _items(lambda path: _is(str, path))(value["inputs"])
    return Vocabulary(_is(int, value["size"]), positions(value["keep"]), inputs)


def _mixture(value: Any) -> Mixture:
    router, size, keep, members = value
    return Mixture(_is(str, router), _is(int, size), positions(keep), _is(str, members))


def _index_cut(value: Any) -> IndexCut:
    tensor, size, keep = value
    return IndexCut(_is(str, tensor), _is(int, size), positions(keep))


def _inputs(value: Any) -> InputSpec:
    if value["layout"] not in ("tensor", "tuple", "dict"):
        raise ValueError(f"layout is {value['layout']!r}, expected 'tensor', 'tuple' or 'dict'")
    tensors = {
        path: (_shape(shape), _is(str, dtype), _number(low), _number(high))
        for path, (shape, dtype, low, high) in _is(dict, value["tensors"]).items()
    }
    return InputSpec(value["layout"], tensors)


def _number(value: Any) -> float:
    return value if isinstance(value, int) and not isinstance(value, bool) else _is(float, value)


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "criterion": lambda value: _is(str, value),
    "neutral": lambda value: _is(bool, value),
    "before": _size,
    "after": _size,
    "inputs": _inputs,
    "depth": _items(_removal),
    "permanent": _items(lambda value: _is(str, value)),
    "cuts": _items(_cut),
    "tensors": _items(_tensor_cut),
    "attributes": _items(_attribute),
    "shapes": _items(_operator),
    "reductions": _items(_reduction),
    "vocabulary": _vocabulary,
    "mixtures": _items(_mixture),
    "indices": _items(_index_cut),
}
