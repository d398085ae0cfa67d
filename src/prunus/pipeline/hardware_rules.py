"""What a pruning structure can gain on which hardware: the survey's statements as rules that can be checked.

Source: the hardware view of survey 001, section VII.E, per family of methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["structured", "semi-structured", "unstructured"]
Benefit = Literal["size", "latency", "both"]

_NEEDS_SPARSE_KERNEL: frozenset[str] = frozenset({"unstructured", "semi-structured"})
_LATENCY_TARGETS = frozenset({"latency"})
_SIZE_TARGETS = frozenset({"params", "bytes"})
_BOTH_TARGETS = frozenset({"macs", "energy"})


def check_structure(kind: Kind, target: Mapping[str, Any], *, sparse_kernel: bool) -> str:
    """Why this structure cannot give what the budget asks for; empty when it can.

    >>> check_structure("structured", {"latency": 0.5}, sparse_kernel=False)
    ''
    >>> bool(check_structure("unstructured", {"latency": 0.5}, sparse_kernel=False))
    True
    """
    if _LATENCY_TARGETS & set(target) and kind in _NEEDS_SPARSE_KERNEL and not sparse_kernel:
        return (
            f"a latency budget cannot be met by {kind} zeros without a sparse kernel: remove whole units, "
            "or give up the latency budget"
        )
    return ""


def benefit_of(kind: Kind, target: Mapping[str, Any]) -> Benefit:
    """What is declared to gain, before anything is measured.

    >>> benefit_of("structured", {"params": 0.5}), benefit_of("unstructured", {"macs": 0.5})
    ('size', 'size')
    """
    if kind in _NEEDS_SPARSE_KERNEL:
        return "size"
    asked = set(target)
    if asked and asked <= _SIZE_TARGETS:
        return "size"
    if asked and asked <= _LATENCY_TARGETS:
        return "latency"
    return "both"


def hardware_rules(platform: str, channel_multiple: int, round_to: int, rounds: int) -> list[dict[str, str]]:
    """Each rule for removing whole units, and whether this run keeps it: applies, satisfied or violated, and why."""
    rules = [
        ("structured", "satisfied", "the exported graph has only dense operators"),
        ("channel", "satisfied", "channels are gone from the tensors; nothing is selected at run time"),
        ("neuron", "satisfied", "both matrices that a unit stands in shrink"),
        _multiples(channel_multiple, round_to),
    ]
    if rounds > 1:
        rules.append(("iterative", "applies", f"{rounds} rounds; their cost is in the seconds of the execution step"))
    if platform in ("fpga", "npu"):
        rules.append(
            ("structured", "applies", "a design of fixed depth and width has to be built anew for the new widths")
        )
    return [{"rule": rule, "status": status, "reason": reason} for rule, status, reason in rules]


def _multiples(channel_multiple: int, round_to: int) -> tuple[str, str, str]:
    if channel_multiple == 1:
        return "filter", "applies", "no channel multiple is named for the device; any width will do"
    if round_to % channel_multiple == 0:
        return "filter", "satisfied", f"widths are multiples of {round_to}, as the device's {channel_multiple} needs"
    return (
        "filter",
        "violated",
        f"the device handles multiples of {channel_multiple}, but round_to is {round_to}: padding costs time",
    )
