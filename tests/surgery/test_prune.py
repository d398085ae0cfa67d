"""One call from model to smaller model; wrong arguments change nothing; groups that break are left out and the budget
still holds."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.allocation import latency_table
from prunus.errors import BudgetError, InputError, SurgeryError, TraceError, UnknownNameError, VerificationError
from prunus.graph import trace
from prunus.graph.counting import macs
from prunus.surgery import Pruned, load, plans_of, prune, save
from prunus.surgery.choose import TimedInTurns
from prunus.types import Plan

from .helpers import SmallNet, assert_unchanged, lively, state

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Wide(nn.Module):
    """conv(3 -> 16) - bn - conv(16 -> 24) - bn - conv(24 -> 16) - pool - linear(16 -> 5)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 16)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = torch.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model() -> Wide:
    return lively(Wide()).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4)) for _ in range(3)]


def counted_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------ what comes out


def test_half_of_every_group_goes_and_the_report_counts_it(model: Wide):
    before = state(model)
    result = prunus.prune(model, X, ratio=0.5)
    assert_unchanged(model, before)
    assert [w.after for w in result.report.widths] == [8, 12, 8]
    assert result.report.before.parameters == counted_parameters(model)
    assert result.report.after.parameters == counted_parameters(result.model)
    # 64 positions, 3x3 kernels: worked out by hand
    assert result.report.after.macs == 64 * 9 * (3 * 8 + 8 * 12 + 12 * 8) + 8 * 5
    assert result.report.reduction["macs"] == pytest.approx(
        100 * (1 - result.report.after.macs / (64 * 9 * (3 * 16 + 16 * 24 + 24 * 16) + 16 * 5))
    )
    assert result.plan == plans_of(result.model)[0]
    assert result.plans == (result.plan,)


def test_the_units_that_go_are_those_of_least_norm(model: Wide):
    result = prune(model, X, ratio=0.5, criterion="l1_norm")
    dense = model.state_dict()["convs.0.weight"]
    norms = dense.abs().sum((1, 2, 3))
    kept = norms.topk(8).indices.sort().values
    assert torch.equal(result.model.state_dict()["convs.0.weight"], dense[kept])


def test_the_report_prints_as_a_table(model: Wide):
    lines = str(prune(model, X, ratio=0.5).report).splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert lines[1].split() == ["parameters", f"{counted_parameters(model):,}", "2,045", "-72.9%"]
    assert lines[-1] == "3 of 3 groups cut, criterion l2_norm"


def test_what_cannot_be_pruned_is_listed_with_its_reason(model: Wide):
    refused = {r.what: r.reason for r in prune(model, X, ratio=0.5).refused}
    assert "input" in refused["convs.0.weight dimension 1 (3)"]
    assert any("output" in reason for what, reason in refused.items() if what.startswith("head"))


@pytest.mark.parametrize("target", [{"macs": 0.3}, {"params": "3k"}, {"bytes": "12kB"}, {"macs": 0.6, "params": 0.4}])
@pytest.mark.parametrize("scope", ["group", "global"])
def test_budgets_hold(model: Wide, target: dict, scope: str):
    report = prune(model, X, target=target, scope=scope).report
    limits = {
        "macs": lambda v: report.after.macs <= v * report.before.macs,
        "params": lambda v: report.after.parameters <= (3000 if v == "3k" else v * report.before.parameters),
        "bytes": lambda v: report.after.bytes <= 12_000,
    }
    assert all(limits[name](value) for name, value in target.items())


def test_in_place_changes_the_model_itself(model: Wide):
    expected = prune(copy.deepcopy(model), X, ratio=0.5).model
    result = prune(model, X, ratio=0.5, inplace=True)
    assert result.model is model
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_keep_protects_a_layer(model: Wide):
    result = prune(model, X, ratio=0.5, keep=["convs.1"])
    assert result.model.state_dict()["convs.1.weight"].shape == (24, 8, 3, 3)


def test_round_to_and_min_keep_are_respected(model: Wide):
    widths = prune(model, X, ratio=0.6, round_to=4).report.widths
    assert [w.after % 4 for w in widths] == [0, 0, 0]
    assert min(w.after for w in prune(model, X, ratio=0.9, min_keep=6).report.widths) == 6


@pytest.mark.parametrize("criterion", ["taylor_weight", "taylor_activation", "batchnorm_scale", "random"])
def test_criteria_with_data_and_without(model: Wide, criterion: str):
    before = state(model)
    result = prune(model, X, ratio=0.5, criterion=criterion, data=iter(batches()))
    assert_unchanged(model, before)
    assert [w.after for w in result.report.widths] == [8, 12, 8]
    assert result.plan.criterion == criterion


def test_a_callable_is_a_criterion(model: Wide):
    result = prune(model, X, ratio=0.5, criterion=lambda weight: weight.amax(1))
    dense = model.state_dict()["convs.0.weight"]
    kept = dense.flatten(1).amax(1).topk(8).indices.sort().values
    assert torch.equal(result.model.state_dict()["convs.0.weight"], dense[kept])


def test_pruning_a_result_again_adds_a_plan_and_saves_and_loads(model: Wide, tmp_path):
    first = prune(model, X, ratio=0.25)
    second = prune(first, X, ratio=0.25)
    assert [w.after for w in second.report.widths] == [9, 14, 9]
    assert second.plans == (first.plan, second.plan)
    loaded = load(save(second, tmp_path / "twice"), Wide())
    for name, tensor in second.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


# -------------------------------------------------------------------------------------------------- measured targets


def test_max_drop_finds_a_deep_cut_that_holds(model: Wide):
    """A quality that is the share of parameters left: a drop of 0.5 allows half of them to go."""
    dense = counted_parameters(model)
    result = prune(model, X, target={"max_drop": 0.5}, quality=lambda m: counted_parameters(m) / dense)
    left = result.report.after.parameters / dense
    assert 0.5 <= left < 0.6
    assert result.report.notes[0].startswith(f"quality {left:.4f} of 1.0000")


def test_max_drop_measures_accuracy_on_the_data(model: Wide):
    result = prune(model, X, target={"max_drop": 1.0}, data=batches())
    assert [w.after for w in result.report.widths] == [1, 1, 1]
    assert not result.model.training


def test_targets_hold_together_or_not_at_all(model: Wide):
    dense = counted_parameters(model)
    quality = lambda m: counted_parameters(m) / dense  # noqa: E731
    held = prune(model, X, target={"params": 0.7, "max_drop": 0.4}, quality=quality)
    assert 0.6 <= held.report.after.parameters / dense <= 0.7
    with pytest.raises(BudgetError, match=r"max_drop=0\.1 does not hold together.* from 1\.0000 to 0\.68"):
        prune(model, X, target={"params": 0.7, "max_drop": 0.1}, quality=quality)


def test_latency_is_measured_on_the_cut_model(model: Wide, monkeypatch: pytest.MonkeyPatch):
    """Clocks that count work, for the layers and for the whole model: half the time is half the work."""
    monkeypatch.setattr(latency_table._Timer, "__call__", lambda self, key, layer, x: layer().weight.numel() * 1e-9)
    result = prune(model, X, target={"latency": 0.5}, seconds=lambda m: macs(trace(m, X)) * 1e-9)
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    taken, whole = (size.macs * 1e-9 * 1e3 for size in (result.report.after, result.report.before))
    assert result.report.notes[0].startswith(f"latency {taken:.4g} ms of {whole:.4g} ms")


def test_times_in_turns_are_relative_to_the_dense_model():
    """The clock runs twice as fast in the second measurement: the result does not."""
    now, speed = [0.0], [1.0]

    class Sleeper(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            now[0] += self.seconds * speed[0]
            return x

    dense, cut = Sleeper(4.0), Sleeper(1.0)
    timed = TimedInTurns(dense, X, clock=lambda: now[0])
    assert timed(dense) == pytest.approx(4.0)
    speed[0] = 2.0
    assert timed(cut) == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------------- wrong arguments


def _nan(model: Wide) -> None:
    with torch.no_grad():
        model.state_dict()["convs.1.weight"][3, 2, 1, 1] = torch.nan


WRONG = {
    "no amount": ({}, InputError, r"give ratio= \(such as 0\.5\) or target=.*neither was given"),
    "two amounts": ({"ratio": 0.5, "target": {"macs": 0.5}}, InputError, "both were given"),
    "ratio": ({"ratio": 1.5}, InputError, r"ratio=1\.5 must be a number in \[0, 1\]"),
    "ratio of a pattern": ({"ratio": {"convs.*": -1}}, InputError, r"ratio=-1 must be"),
    "criterion": ({"ratio": 0.5, "criterion": "l2norm"}, UnknownNameError, "did you mean 'l2_norm'"),
    "scope": ({"ratio": 0.5, "scope": "layer"}, UnknownNameError, "scope 'layer'"),
    "keep": ({"ratio": 0.5, "keep": ["conv.1"]}, UnknownNameError, r"did you mean 'convs\.1'"),
    "target name": ({"target": {"mac": 0.5}}, UnknownNameError, "did you mean 'macs'"),
    "target value": ({"target": {"macs": "many"}}, InputError, "macs='many'"),
    "energy": ({"target": {"energy": 0.5}}, InputError, "give a 'macs' or 'latency' target"),
    "empty target": ({"target": {}}, InputError, "target"),
    "impossible budget": ({"target": {"macs": 10}}, BudgetError, "macs"),
    "option": ({"ratio": 0.5, "round": 8}, InputError, "no argument 'round': did you mean 'round_to'"),
    "round_to": ({"ratio": 0.5, "round_to": 0}, InputError, "round_to=0"),
    "data": ({"ratio": 0.5, "criterion": "taylor_weight"}, InputError, "give data="),
    "empty data": ({"ratio": 0.5, "criterion": "taylor_weight", "data": []}, InputError, "batch"),
    "quality": ({"target": {"max_drop": 0.1}}, InputError, "give data=.*or quality="),
    "max_drop": ({"target": {"max_drop": -1}, "data": batches()}, InputError, r"max_drop=-1 must be"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("inplace", [False, True])
def test_wrong_arguments_say_what_to_do_and_change_nothing(model: Wide, case: str, inplace: bool):
    arguments, error, message = WRONG[case]
    before = state(model)
    with pytest.raises(error, match=message):
        prune(model, X, inplace=inplace, **arguments)
    assert_unchanged(model, before)


def test_inputs_of_the_wrong_shape_and_broken_weights_are_named(model: Wide):
    with pytest.raises(TraceError, match=r"did not run on the example inputs of shape .*\(2, 5, 8, 8\)"):
        prune(model, torch.randn(2, 5, 8, 8), ratio=0.5)
    with pytest.raises(InputError, match="example_inputs must be"):
        prune(model, "image.png", ratio=0.5)
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module"):
        prune("resnet", X, ratio=0.5)  # type: ignore[arg-type]
    _nan(model)
    with pytest.raises(InputError, match=r"'convs\.1\.weight' holds 1 NaN or infinite of 3456 values: repair"):
        prune(model, X, ratio=0.5)


def test_an_infinite_mask_among_the_buffers_is_fine(model: Wide):
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert prune(model, X, ratio=0.5).model.state_dict()["convs.0.weight"].shape[0] == 8


def test_a_model_with_nothing_to_prune_says_why():
    with pytest.raises(SurgeryError, match=r"nothing in the model can be pruned: .*output"):
        prune(nn.Linear(3, 4), torch.randn(2, 3), ratio=0.5)


# -------------------------------------------------------------------------------------------------- groups that break


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Groups whose cut fails verification, as an operator that the tracer misunderstood would make them."""
    wrong: set[str] = set()
    real = importlib.import_module("prunus.surgery.cut").verify_cut

    def verify(dense: nn.Module, cut: nn.Module, plan: Plan) -> None:
        if found := wrong & {c.group for c in plan.cuts}:
            raise VerificationError(f"the output differs because of {sorted(found)}")
        real(dense, cut, plan)

    monkeypatch.setattr("prunus.surgery.cut.verify_cut", verify)
    return wrong


@pytest.mark.parametrize("inplace", [False, True])
def test_a_group_that_breaks_is_left_whole_and_the_budget_holds(model: Wide, breaking: set[str], inplace: bool):
    breaking.add("convs.1")
    result = prune(model, X, target={"macs": 0.5}, inplace=inplace)
    assert {w.group: w.after for w in result.report.widths}["convs.1"] == 24
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    assert result.refused[0].what == "group 'convs.1'"
    assert "the output differs because of ['convs.1']" in result.refused[0].reason
    assert "keep='convs.1'" in result.refused[0].remedy
    assert not result.report.notes
    assert (result.model is model) == inplace


def test_a_budget_that_is_out_of_reach_without_the_group_warns(model: Wide, breaking: set[str]):
    breaking.update({"convs.0", "convs.1"})
    with pytest.warns(UserWarning, match="the budget does not hold, since groups had to be left whole"):
        result = prune(model, X, target={"macs": 0.1})
    assert [w.after < w.before for w in result.report.widths] == [False, False, True]
    assert result.report.notes[0].startswith("the budget does not hold")
    assert len([r for r in result.refused if r.what.startswith("group")]) == 2


def test_when_every_group_breaks_the_error_comes_through(model: Wide, breaking: set[str]):
    breaking.update({"convs.0", "convs.1", "convs.2"})
    before = state(model)
    with pytest.raises(VerificationError, match="the output differs"):
        prune(model, X, ratio=0.5, inplace=True)
    assert_unchanged(model, before)


def test_verification_can_be_left_out(model: Wide, breaking: set[str]):
    breaking.add("convs.1")
    assert [w.after for w in prune(model, X, ratio=0.5, verify=False).report.widths] == [8, 12, 8]


def test_a_result_names_its_parts(model: Wide):
    result = prune(model, X, ratio=0.5)
    assert isinstance(result, Pruned)
    assert "Wide" in repr(result)
    assert {g.name for g in result.graph.groups} == set(result.scores.values)
    assert isinstance(lively(SmallNet()), SmallNet)
