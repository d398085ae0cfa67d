from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.report import diagnosis, headline, pareto
from prunus.report.verdict import races

COORDINATE = st.integers(0, 6).map(float)


@settings(deadline=None)  # the first call imports torch
@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=12))
def test_front_is_exactly_what_nothing_beats(points):
    """Every point off the front is beaten by one on it, and no point on it is beaten at all."""
    flags = pareto(points)
    on = [point for point, flag in zip(points, flags) if flag]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    assert not any(beats(a, b) for a in points for b in on)
    assert all(any(beats(a, b) for a in on) for b, flag in zip(points, flags) if not flag)


def latency(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    spread = None if low is None else {"low": low, "high": high, "kind": "quartiles", "n": 50}
    return {"name": "latency", "value": value, "unit": "ms", "how": "", "spread": spread, "details": {}}


def timed(dense: dict[str, Any], pruned: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A report that knows only its timings, a cut to a quarter of the MACs, and what is added."""
    setting = {"runtime": "torch", "threads": 1, "batch": 1}
    return {
        "device": [
            {**setting, "variant": "dense", "latency": dense},
            {**setting, "variant": "pruned", "latency": pruned},
        ],
        "baseline": {"macs": 400_000_000},
        "summary": {"final": {"macs": 100_000_000}, "groups": [{"name": "a", "before": 64, "after": 32}]},
        "structure": {"kind": "structured"},
        **more,
    }


def test_faster_as_expected_needs_no_excuse():
    said = diagnosis(timed(latency(8.0, 7.9, 8.1), latency(2.0, 1.9, 2.1)))
    assert said == "Faster: 4.00×, 8.00\u00a0ms → 2.00\u00a0ms (torch, 1 thread, batch 1); MACs fell 4.00×."


def test_overlapping_spreads_are_no_gain():
    assert diagnosis(timed(latency(8.0, 6.0, 9.0), latency(7.0, 5.0, 8.0))).startswith("Not measurably faster")


def test_slower_is_said():
    said = diagnosis(timed(latency(2.0, 1.9, 2.1), latency(4.0, 3.9, 4.1)))
    assert said.startswith("Slower: 2.00× the time")


def test_zeros_are_the_reason_where_shapes_did_not_change():
    said = diagnosis(timed(latency(8.0), latency(8.0), structure={"kind": "unstructured"}))
    assert "multiply zeros as fast" in said


def test_odd_widths_are_named():
    report = timed(latency(8.0, 7.9, 8.1), latency(6.0, 5.9, 6.1))
    report["summary"]["groups"] = [{"name": "a", "before": 64, "after": 33}, {"name": "b", "before": 64, "after": 32}]
    assert "1 of 2 cut widths are not multiples of 8" in diagnosis(report)


def test_costs_that_do_not_shrink_are_shown_as_rates():
    said = diagnosis(timed(latency(8.0, 7.9, 8.1), latency(4.0, 3.9, 4.1)))  # 400 M in 8 ms; 100 M in 4 ms
    assert "the dense model computes 50.0 GMAC/s, the pruned one 25.0" in said


def test_nothing_timed_is_said():
    assert diagnosis({}).startswith("Not timed")


def test_races_pair_only_like_with_like():
    report = timed(latency(8.0), latency(2.0))
    report["device"][1]["threads"] = 4
    assert races(report) == []


def test_other_settings_and_int8_are_told(report):
    said = diagnosis(report)
    assert "Elsewhere: 1.41× faster (torch, 4 threads, batch 1), 2.05× faster (onnxruntime, 1 thread, batch 1)." in said
    assert "As int8: 2.57× faster (onnxruntime, 1 thread, batch 1)." in said


def test_headline_of_the_example(report):
    assert headline(report) == (
        "Budget kept: 59.96\u00a0M MACs, 47.8% of dense (at most 48.0% asked); test accuracy 93.19% against 93.37% "
        "dense (−0.18 points, at most 1.00 may be lost)."
    )


@pytest.mark.parametrize(("met", "opening"), [(True, "Budget kept"), (False, "Budget missed"), (None, "Budget kept")])
def test_headline_says_whether_the_budget_was_kept(report, met, opening):
    report["budget"][0]["met"] = met
    assert headline(report).startswith(opening)


def test_headline_without_budget_tells_the_macs(report):
    del report["budget"]
    assert headline(report).startswith("MACs went from 125.5\u00a0M to 59.96\u00a0M (47.8% of dense); test accuracy")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            {"name": "latency", "achieved": 4.2, "limit": 5.0, "dense": None},
            "latency 4.20\u00a0ms (at most 5.00\u00a0ms asked)",
        ),
        (
            {"name": "bytes", "achieved": 1e6, "limit": 2e6, "dense": 4e6},
            "size 1.00\u00a0MB, 25.0% of dense (at most 50.0% asked)",
        ),
        ({"name": "params", "achieved": 5e5, "limit": None, "dense": 1e6}, "500.0\u00a0k parameters, 50.0% of dense."),
    ],
)
def test_headline_names_each_kind_of_budget(budget, said):
    assert said in headline({"budget": [{**budget, "met": True}]})
