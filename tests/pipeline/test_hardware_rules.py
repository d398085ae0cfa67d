"""What a structure can gain, and the condition of step 4."""

from __future__ import annotations

import pytest

from prunus.pipeline.hardware_rules import benefit_of, check_structure, hardware_rules


def test_a_latency_budget_needs_removed_units_or_a_sparse_kernel():
    assert "latency" in check_structure("unstructured", {"latency": 0.5}, sparse_kernel=False)
    assert check_structure("unstructured", {"latency": 0.5}, sparse_kernel=True) == ""
    assert check_structure("unstructured", {"bytes": 0.5}, sparse_kernel=False) == ""
    assert check_structure("structured", {"latency": 0.5}, sparse_kernel=False) == ""


@pytest.mark.parametrize(
    ("kind", "target", "benefit"),
    [
        ("structured", {"bytes": 0.5}, "size"),
        ("structured", {"latency": 0.5}, "latency"),
        ("structured", {"latency": 0.5, "bytes": 0.5}, "both"),
        ("structured", {}, "both"),
        ("unstructured", {"macs": 0.5}, "size"),
    ],
)
def test_the_benefit_follows_structure_and_budget(kind, target, benefit):
    assert benefit_of(kind, target) == benefit


@pytest.mark.parametrize(
    ("multiple", "round_to", "status"), [(1, 1, "applies"), (8, 16, "satisfied"), (8, 4, "violated")]
)
def test_widths_are_held_against_the_device(multiple, round_to, status):
    rules = hardware_rules("cpu", multiple, round_to, rounds=1)
    assert [rule["status"] for rule in rules if rule["rule"] == "filter"] == [status]
