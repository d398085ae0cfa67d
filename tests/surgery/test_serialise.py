"""Plans survive JSON exactly, and malformed JSON is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import StoredFileError
from prunus.surgery.serialise import from_json, positions, ranges, to_json
from prunus.types import (
    AttributeChange,
    Cut,
    InputSpec,
    Mixture,
    OperatorShape,
    Plan,
    Reduction,
    Size,
    TensorCut,
    Vocabulary,
)

from .helpers import small_net_plan

NAMES = st.text(max_size=8)
SIZES = st.integers(0, 10**12)
KEEPS = st.sets(st.integers(0, 40), min_size=1).map(lambda kept: tuple(sorted(kept)))
SHAPES = st.lists(st.integers(0, 99), max_size=4).map(tuple)
DESCRIPTIONS = st.tuples(
    SHAPES, st.sampled_from(["float32", "int64"]), st.floats(allow_nan=False), st.floats(allow_nan=False)
)
PLANS = st.builds(
    Plan,
    cuts=st.lists(st.builds(Cut, NAMES, st.just(41), KEEPS), max_size=3).map(tuple),
    tensors=st.lists(st.builds(TensorCut, NAMES, st.integers(0, 5), st.just(41), KEEPS), max_size=3).map(tuple),
    attributes=st.lists(st.builds(AttributeChange, NAMES, NAMES, SIZES, SIZES), max_size=2).map(tuple),
    shapes=st.lists(st.builds(OperatorShape, NAMES, NAMES, st.lists(SHAPES, max_size=2).map(tuple)), max_size=2).map(
        tuple
    ),
    inputs=st.builds(
        InputSpec, st.sampled_from(["tensor", "tuple", "dict"]), st.dictionaries(NAMES, DESCRIPTIONS, max_size=2)
    ),
    before=st.builds(Size, SIZES, SIZES, SIZES),
    after=st.builds(Size, SIZES, SIZES, SIZES),
    neutral=st.booleans(),
    criterion=NAMES,
    reductions=st.lists(
        st.builds(Reduction, NAMES, NAMES, st.integers(0, 9), st.integers(0, 5), st.just(41), KEEPS), max_size=2
    ).map(tuple),
    mixtures=st.lists(st.builds(Mixture, NAMES, SIZES, KEEPS, NAMES), max_size=2).map(tuple),
    vocabulary=st.none() | st.builds(Vocabulary, SIZES, KEEPS, st.lists(NAMES, max_size=2).map(tuple)),
)


@settings(deadline=None)
@given(PLANS)
def test_the_round_trip_is_exact(plan: Plan):
    assert from_json(to_json(plan)) == plan


@given(KEEPS)
def test_ranges_name_the_same_positions(keep: tuple[int, ...]):
    assert positions(ranges(keep)) == keep


def test_a_long_keep_list_is_short_text():
    assert ranges(tuple(range(4096))) == "0-4095"
    assert ranges((0, 2, 3, 9)) == "0,2-3,9"


@pytest.mark.parametrize("text", ["", "3-1", "1,1", "2,1", "1,", "-1", "a", "1-2-3", "0.5"])
def test_malformed_ranges_are_errors(text: str):
    with pytest.raises(ValueError, match="neither a position|must ascend"):
        positions(text)


def _without(name: str):
    return lambda data: data.pop(name)


def _set(*path: object):
    *outer, last, value = path

    def change(data):
        for key in outer:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("cuts"), "no field 'cuts'"),
        (_without("format"), "has the format None"),
        (_set("format", "prunus.plan/99"), r"'prunus\.plan/99'; this version of prunus reads"),
        (_set("neutral", "yes"), "'neutral' is malformed"),
        (_set("before", "macs", 1.5), "'before' is malformed"),
        (_set("before", "macs", True), "'before' is malformed"),
        (_set("cuts", 0, "keep", "0-99"), "'cuts' is malformed"),
        (_set("tensors", 0, "keep", "0-99"), "'tensors' is malformed.*keeps position 99 of 6"),
        (_set("tensors", 0, "keep", ""), "'tensors' is malformed"),
        (_set("tensors", 0, "dim", "0"), "'tensors' is malformed"),
        (_set("shapes", 0, ["aten::relu"]), "'shapes' is malformed"),
        (_set("inputs", "layout", "list"), "'inputs' is malformed"),
        (_set("attributes", {}), "'attributes' is malformed"),
    ],
)
def test_a_damaged_plan_is_refused_by_field(damage, message: str):
    data = json.loads(to_json(small_net_plan()))
    damage(data)
    with pytest.raises(StoredFileError, match=message):
        from_json(json.dumps(data), source="plan.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": '])
def test_what_is_not_a_plan_is_refused(text: str):
    with pytest.raises(StoredFileError, match=r"plan\.json"):
        from_json(text, source="plan.json")
