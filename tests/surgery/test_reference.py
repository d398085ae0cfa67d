"""Where zeroing is not removing: the reference computes statistics over what stays, and finds wrong cuts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import prune
from prunus.errors import VerificationError
from prunus.graph import plan_from, trace
from prunus.surgery import apply
from prunus.surgery.reference import RESTRICTED
from prunus.surgery.verify import check_values
from prunus.types import Plan, TensorCut

from ..graph.architectures import Encoder, FusedHeads, SeparateHeads
from .helpers import SmallNet, lively, plan_of

ATEN = torch.ops.aten
KEPT = {1: torch.tensor([0, 2, 3])}


class Between(nn.Module):
    """Something that computes a statistic over the units between two layers."""

    def __init__(self, norm: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 12), norm, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()


NORMALISERS: dict[str, Callable[[], nn.Module | Callable[[Tensor], Tensor]]] = {
    "layer norm": lambda: nn.LayerNorm(12),
    "layer norm without scale": lambda: nn.LayerNorm(12, elementwise_affine=False),
    "rms norm": lambda: nn.RMSNorm(12),
    "group norm": lambda: nn.GroupNorm(3, 12),
    "softmax": lambda: nn.Softmax(-1),
    "log softmax": lambda: lambda x: F.log_softmax(x, -1).exp(),
    "mean and variance by hand": lambda: _centred,
    "mean": lambda: lambda x: x - x.sigmoid().mean(-1, keepdim=True),
    "largest": lambda: lambda x: x.sigmoid() / x.sigmoid().amax(-1, keepdim=True),
    "sum of what zero does not keep zero": lambda: lambda x: x / x.exp().sum(-1, keepdim=True),
}


def _plan(model: nn.Module, x: Tensor) -> Plan:
    """Every other unit of each group stays."""
    graph = trace(model, x)
    return plan_from(graph, {group.name: range(0, group.size, 2) for group in graph.groups})


@pytest.mark.parametrize("name", NORMALISERS)
def test_a_statistic_over_the_units_is_proven_and_a_wrong_cut_is_found(name: str):
    model, x = lively(Between(NORMALISERS[name]())), torch.randn(2, 4)
    plan = _plan(model, x)
    assert not plan.neutral
    cut = apply(model, plan, verify=False)
    found = check_values(model, cut, plan)
    assert found.equal
    wrong = copy.deepcopy(cut)
    with torch.no_grad():
        wrong.first.weight[0] = model.first.weight[1]  # the unit beside the one that was to stay
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, wrong, plan)


def test_zeroing_alone_would_not_have_proven_it():
    model, x = lively(Between(nn.LayerNorm(12))), torch.randn(2, 4)
    plan = _plan(model, x)
    cut = apply(model, plan)
    neutral = plan_of(plan.tensors, example=x)
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, cut, neutral)


def test_what_has_no_reference_is_shapes_only_and_says_so():
    model, x = lively(Between(lambda x: x - x.median(-1, keepdim=True).values)), torch.randn(2, 4)
    plan = _plan(model, x)
    found = check_values(model, apply(model, plan), plan)
    assert not found.equal
    assert found.how == "shapes only: there is no masked reference for aten::median"


# ----------------------------------------------------------------------------------------- operators against formulas


def test_softmax_is_that_with_minus_infinity():
    x = torch.randn(2, 5, dtype=torch.float64)
    masked = x.clone()
    masked[:, [1, 4]] = -torch.inf
    got = RESTRICTED["aten::_softmax"](ATEN._softmax.default, (x, 1, False), {}, KEPT)
    torch.testing.assert_close(got, masked.softmax(1))


def test_layer_norm_is_the_formula_over_what_stays():
    x, scale, shift = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 5), (5,), (5,)))
    got, *_ = RESTRICTED["aten::native_layer_norm"](
        ATEN.native_layer_norm.default, (x, [5], scale, shift, 1e-5), {}, KEPT
    )
    stay = [0, 2, 3]
    mean, variance = x[:, stay].mean(1, keepdim=True), x[:, stay].var(1, correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
    torch.testing.assert_close(got[:, stay], expected[:, stay])
    assert not got[:, [1, 4]].any()


def test_group_norm_with_a_group_gone_is_that_of_the_others():
    x, scale, shift = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 6, 3), (6,), (6,)))
    stay = [0, 1, 4, 5]
    got, *_ = RESTRICTED["aten::native_group_norm"](
        ATEN.native_group_norm.default, (x, scale, shift, 2, 6, 3, 3, 1e-5), {}, {1: torch.tensor(stay)}
    )
    expected = F.group_norm(x[:, stay], 2, scale[stay], shift[stay])
    torch.testing.assert_close(got[:, stay], expected)
    assert not got[:, [2, 3]].any()


# ---------------------------------------------------------------------------------------------------------- networks


IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_transformer_cut_in_every_way_is_proven_equal():
    model = lively(SeparateHeads()).eval()
    result = prune(model, IDS, ratio=0.5)
    assert not result.plan.neutral
    assert {"hidden", "head", "head_dim", "neuron"} == set(result.report.kinds)
    assert all(after < before for before, after in result.report.kinds.values())
    assert result.verified is not None
    assert result.verified.equal


def test_the_default_scale_of_attention_follows_the_cut_and_is_named():
    model, x = lively(Encoder()).eval(), torch.randn(2, 5, 8)
    plan = _plan(model, x)
    found = check_values(model, apply(model, plan, verify=False), plan)
    assert found.equal
    assert any("self_attn: 0.5 -> 0.594604" in constant for constant in found.constants)  # 16^-1/4 and 8^-1/4


def test_a_neutral_plan_needs_no_reference():
    result = prune(lively(SmallNet()), torch.randn(2, 3, 8, 8), ratio=0.5)
    assert result.verified is not None
    assert result.verified.equal
    assert not result.plan.reductions
    assert not result.verified.constants


def test_only_kinds_that_are_asked_for_are_cut():
    model, x = lively(FusedHeads()).eval(), torch.randn(2, 5, 6)
    kinds = prune(model, x, ratio=0.5, only=("head", "neuron")).report.kinds
    assert kinds == {"hidden": (32, 32), "head": (4, 2), "head_dim": (8, 8), "neuron": (64, 32)}
    kinds = prune(model, x, ratio={"head": 0.25, "neuron": 0.5}).report.kinds
    assert kinds == {"hidden": (32, 32), "head": (4, 3), "head_dim": (8, 8), "neuron": (64, 32)}


def test_a_tensor_cut_elsewhere_than_its_statistics_is_found():
    """Shapes agree; the norm's scale keeps other positions than the statistics do."""
    model, x = lively(Between(nn.LayerNorm(12))), torch.randn(2, 4)
    plan = _plan(model, x)
    shifted = tuple(
        TensorCut(c.tensor, c.dim, c.size, tuple(range(1, 12, 2))) if c.tensor == "norm.weight" else c
        for c in plan.tensors
    )
    cut = apply(model, plan_of(shifted, attributes=plan.attributes), verify=False)
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, cut, plan)
