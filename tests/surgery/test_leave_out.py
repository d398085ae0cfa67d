"""Bisection finds exactly the groups that break the model."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError, VerificationError
from prunus.graph import plan_from, trace
from prunus.surgery import apply, leave_out_failing
from prunus.types import Graph, Plan

module = importlib.import_module("prunus.surgery.leave_out")


class Chain(nn.Module):
    """Eight hidden widths, each its own group."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@pytest.fixture
def chain() -> tuple[Chain, Graph, Plan]:
    model = Chain()
    graph = trace(model, torch.randn(2, 4))
    assert len(graph.groups) == 8
    return model, graph, plan_from(graph, {g.name: (0, 1) for g in graph.groups}, "l2_norm")


def failing_if(monkeypatch: pytest.MonkeyPatch, bad: Callable[[set[str]], bool]) -> list[set[str]]:
    """Let `apply` fail for plans whose groups are bad; returns the list of trials."""
    trials: list[set[str]] = []

    def trial(model: nn.Module, plan: Plan) -> nn.Module:
        groups = {cut.group for cut in plan.cuts}
        trials.append(groups)
        if bad(groups):
            raise VerificationError(f"bad: {sorted(groups)}")
        return model

    monkeypatch.setattr(module, "apply", trial)
    return trials


@pytest.mark.parametrize("wrong", [{"layers.0"}, {"layers.7"}, {"layers.2", "layers.3"}, {"layers.0", "layers.5"}])
def test_every_failing_group_is_left_out_and_no_other(chain, monkeypatch: pytest.MonkeyPatch, wrong: set[str]):
    model, graph, plan = chain
    trials = failing_if(monkeypatch, lambda groups: bool(groups & wrong))
    kept = leave_out_failing(model, graph, plan)
    assert kept.refused_groups == wrong
    assert {cut.group for cut in kept.plan.cuts} == {g.name for g in graph.groups} - wrong
    assert {refusal.what for refusal in kept.refused} == {f"group {name!r}" for name in wrong}
    assert all("cutting it breaks the model: bad" in refusal.reason for refusal in kept.refused)
    assert kept.plan.criterion == "l2_norm"
    assert len(trials) <= 2 + len(wrong) * 2 * 4  # one or two groups of eight: about log2(8) halvings each


def test_groups_that_only_fail_together_lose_one_of_them(chain, monkeypatch: pytest.MonkeyPatch):
    model, graph, plan = chain
    failing_if(monkeypatch, lambda groups: {"layers.1", "layers.6"} <= groups)
    kept = leave_out_failing(model, graph, plan)
    assert kept.refused_groups == {"layers.6"}
    assert len(kept.plan.cuts) == 7


def test_a_model_that_fails_uncut_blames_no_group(chain, monkeypatch: pytest.MonkeyPatch):
    model, graph, plan = chain
    failing_if(monkeypatch, lambda groups: True)
    with pytest.raises(VerificationError, match=r"bad: \[\]"):
        leave_out_failing(model, graph, plan)


def test_when_every_group_fails_the_error_is_raised(chain, monkeypatch: pytest.MonkeyPatch):
    model, graph, plan = chain
    failing_if(monkeypatch, bool)
    with pytest.raises(SurgeryError, match="bad"):
        leave_out_failing(model, graph, plan)


def test_what_holds_is_really_applicable(chain):
    model, graph, plan = chain
    kept = leave_out_failing(model, graph, plan)
    assert kept.plan == plan
    assert not kept.refused
    assert apply(model, kept.plan).layers[3].weight.shape == (2, 2)
