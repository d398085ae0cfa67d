"""Verification finds what is wrong, claims no more than it can, and leaves everything as it was."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError, VerificationError
from prunus.graph import plan_from, trace
from prunus.surgery import apply
from prunus.surgery.operators import check_shapes
from prunus.surgery.verify import check_values, masked_copy, verify
from prunus.types import OperatorShape, Plan, TensorCut

from .helpers import FakeRecorder, SmallNet, assert_unchanged, lively, norm_cuts, plan_of, small_net_plan, state


def planned(model: nn.Module, inputs: Tensor, fraction: float = 0.5) -> Plan:
    graph = trace(model, inputs)
    return plan_from(graph, {g.name: range(max(1, round(g.size * fraction))) for g in graph.groups})


# ------------------------------------------------------------------------------------------------------------ values


def test_the_masked_model_holds_zeros_where_the_plan_cuts():
    model = lively(SmallNet())
    masked = masked_copy(model, small_net_plan((0, 2, 5)))
    gone, kept = [1, 3, 4], [0, 2, 5]
    assert not masked.conv1.weight[gone].any()
    assert not masked.conv2.weight[:, gone].any()
    assert torch.equal(masked.conv1.weight[kept], model.conv1.weight[kept])
    statistics = masked.state_dict()
    assert torch.equal(statistics["bn1.running_var"][gone], torch.ones(3))
    assert not statistics["bn1.running_mean"][gone].any()
    assert torch.equal(masked.head.weight, model.head.weight)


MISTAKES = {
    "other filters": lambda cut: TensorCut("conv1.weight", 0, 6, (0, 2, 4)),
    "other biases": lambda cut: TensorCut("conv1.bias", 0, 6, (0, 2, 4)),
    "other input columns": lambda cut: TensorCut("conv2.weight", 1, 6, (1, 2, 5)),
    "other means": lambda cut: TensorCut("bn1.running_mean", 0, 6, (0, 1, 5)),
    "other variances": lambda cut: TensorCut("bn1.running_var", 0, 6, (0, 3, 5)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_cut_of_the_wrong_channels_is_noticed_by_its_values(mistake: str):
    """The shapes are right; only one tensor keeps other channels than the rest."""
    model = lively(SmallNet())
    right = small_net_plan((0, 2, 5))
    wrong = MISTAKES[mistake](None)
    tensors = tuple(wrong if (t.tensor, t.dim) == (wrong.tensor, wrong.dim) else t for t in right.tensors)
    cut = apply(model, plan_of(tensors), verify=False)
    with pytest.raises(VerificationError, match=r"the output.* differs by .* zeros in the place of what was removed"):
        check_values(model, cut, right)


def test_a_forgotten_consumer_does_not_run():
    model = lively(SmallNet())
    plan = small_net_plan((0, 2, 5))
    cut = apply(model, plan_of(plan.tensors[:-1]), verify=False)
    with pytest.raises(VerificationError, match="the cut model does not run"):
        check_values(model, cut, plan)


class Constant(nn.Module):
    """Holds a float32 constant where no conversion finds it, so that it does not run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.hidden = [torch.full((4, 4), 0.5)]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x @ self.hidden[0]))


LINEAR_CUTS = (
    TensorCut("first.weight", 0, 6, (1, 2)),
    TensorCut("first.bias", 0, 6, (1, 2)),
    TensorCut("second.weight", 1, 6, (1, 2)),
)


def test_a_model_that_cannot_run_in_float64_is_compared_in_float32():
    model, x = Constant(), torch.randn(3, 4)
    plan = plan_of(LINEAR_CUTS, example=x)
    cut = apply(model, plan, verify=False)
    check_values(model, cut, plan)
    wrong = apply(model, plan_of((*LINEAR_CUTS[:2], TensorCut("second.weight", 1, 6, (0, 2)))), verify=False)
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, wrong, plan)


def test_a_dense_model_that_does_not_run_is_not_blamed_on_the_cut():
    model = lively(SmallNet())
    plan = small_net_plan(example=torch.randn(2, 4, 8, 8))
    with pytest.raises(SurgeryError, match="the dense model does not run on the example inputs") as caught:
        check_values(model, apply(model, plan, verify=False), plan)
    assert not isinstance(caught.value, VerificationError)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.view(4, 4)))


def test_a_batch_size_written_into_the_model_is_respected():
    model = FixedBatch()
    plan = plan_of(LINEAR_CUTS, example=torch.randn(4, 4))
    check_values(model, apply(model, plan, verify=False), plan)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden + torch.rand_like(hidden))


def test_a_model_that_draws_random_numbers_is_not_compared():
    model = Noisy()
    plan = plan_of(LINEAR_CUTS, example=torch.randn(2, 4))
    check_values(model, apply(model, plan, verify=False), plan)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


def test_without_a_reference_only_finite_outputs_are_claimed():
    model, x = Normalised(), torch.randn(2, 4)
    plan = replace(planned(model, x), reductions=())
    assert not plan.neutral
    cut = apply(model, plan)
    found = check_values(model, cut, plan)
    assert not found.equal
    assert "over which units statistics are computed" in found.how
    assert cut.norm.normalized_shape == (3,)
    with torch.no_grad():
        cut.second.bias[0] = torch.inf
    with pytest.raises(VerificationError, match="holds NaN or infinity"):
        check_values(model, cut, plan)


class Nested(nn.Module):
    """Keyword inputs, nested outputs, integer outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict:
        out = self.second(self.first(x) * scale)
        return {"logits": out, "more": (out.argmax(-1), [out.sum()])}


def test_nested_inputs_and_outputs_are_compared():
    model = Nested()
    inputs = {"x": torch.randn(2, 4), "scale": torch.tensor(2.0)}
    plan = plan_of(LINEAR_CUTS, example=inputs)
    check_values(model, apply(model, plan, verify=False), plan)
    wrong = apply(model, plan_of((*LINEAR_CUTS[:2], TensorCut("second.weight", 1, 6, (0, 2)))), verify=False)
    with pytest.raises(VerificationError, match=r"output \['logits'\] differs"):
        check_values(model, wrong, plan)


# ------------------------------------------------------------------------------------------------------------ shapes


def test_a_shape_that_differs_is_named_with_its_operator():
    model = lively(SmallNet()).eval()
    plan = planned(model, torch.randn(2, 3, 8, 8))
    cut = apply(model, plan)
    index = next(i for i, o in enumerate(plan.shapes) if o.name == "aten::convolution" and o.module == "conv2")
    wrong = OperatorShape("aten::convolution", "conv2", ((2, 9, 8, 8),))
    changed = plan_of(plan.tensors, shapes=(*plan.shapes[:index], wrong, *plan.shapes[index + 1 :]))
    with pytest.raises(
        VerificationError,
        match=r"aten::convolution in module 'conv2' was to give shape \(2, 9, 8, 8\), but gives \(2, 2, 8, 8\)",
    ):
        verify(model, cut, changed)


def test_an_operator_more_or_less_is_named():
    model = lively(SmallNet())
    plan = small_net_plan()
    cut = apply(model, plan, verify=False)
    twice = small_net_plan(shapes=(*plan.shapes, plan.shapes[1]))
    with pytest.raises(VerificationError, match=r"convolution in module 'conv2' was to run 2 times, but runs 1 times"):
        check_shapes(cut, twice, FakeRecorder())
    fewer = small_net_plan(shapes=(plan.shapes[0], plan.shapes[2]))
    with pytest.raises(VerificationError, match=r"in module 'conv2' was to run 0 times, but runs 1 times"):
        check_shapes(cut, fewer, FakeRecorder())


class HardCoded(nn.Module):
    """A view that still runs after the wrong cut and gives the right output shape, with wrong values inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).view(len(x), 3, -1).mean(1))


def test_a_size_written_into_the_code_is_caught_at_the_view():
    """Twelve units seen as 3 x 4: without the last third the view makes 3 x 8/3, which fails; without every third of a
    row it would mean over other units. A wrong prediction of 2 x 4 is caught although the output shape is right."""
    model = HardCoded()
    keep = tuple(range(9))
    cut = apply(
        model,
        plan_of(
            (
                TensorCut("first.weight", 0, 12, keep),
                TensorCut("first.bias", 0, 12, keep),
                TensorCut("second.weight", 1, 4, (0, 1, 2)),
            )
        ),
        verify=False,
    )
    x = torch.randn(2, 4)
    assert cut(x).shape == model(x).shape
    plan = plan_of((), example=x, shapes=(OperatorShape("aten::view", "", ((2, 3, 4),)),))
    with pytest.raises(VerificationError, match=r"in module '' was to give shape \(2, 3, 4\), but gives \(2, 3, 3\)"):
        check_shapes(cut, plan, lambda m, i: [o for o in _recorded(m, i) if o.name == "aten::view"])


def _recorded(model: nn.Module, inputs: Tensor) -> tuple[OperatorShape, ...]:
    from prunus.graph import shapes_of

    return shapes_of(model, inputs)


# ------------------------------------------------------------------------------------------------- nothing is touched


def test_nothing_is_touched():
    model = lively(SmallNet()).train()
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    plan = planned(model, x)
    cut = apply(model, plan, verify=False)
    before, cut_before = state(model), state(cut)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)[1].copy()  # pyright: ignore[reportArgumentType]
    verify(model, cut, plan)
    assert_unchanged(model, before)
    assert_unchanged(cut, cut_before)
    assert model.training
    assert cut.training
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state(legacy=True)[1], generators[2])  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])


def test_a_meta_model_is_checked_by_shapes_alone():
    model = SmallNet().to("meta")
    graph = trace(model, torch.randn(2, 3, 8, 8))
    cut = apply(model, plan_from(graph, {"conv1": [0, 3]}))
    assert cut.conv2.weight.shape == (4, 2, 3, 3)
    assert cut.conv2.weight.device.type == "meta"


def test_a_norm_that_is_cut_with_its_producer_stays_neutral():
    """Statistics of removed channels do not matter: mean 0, variance 1 in the masked model."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False, eps=0.0), nn.Conv2d(6, 2, 1))
    lively(model).eval()
    cuts = (
        TensorCut("0.weight", 0, 6, (1, 4)),
        *(cut for cut in norm_cuts("1", 6, (1, 4)) if "running" in cut.tensor),
        TensorCut("2.weight", 1, 6, (1, 4)),
    )
    plan = plan_of(cuts)
    check_values(model, apply(model, plan, verify=False), plan)


class NormalisedConstant(nn.Module):
    """Normalised units, and a float32 constant where no conversion finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.hidden = [torch.full((4, 4), 0.5)]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x @ self.hidden[0])))


def test_a_plan_that_is_not_neutral_is_compared_in_float32_where_need_be():
    model, x = NormalisedConstant(), torch.randn(3, 4)
    plan = planned(model, x)
    cut = apply(model, plan, verify=False)
    assert check_values(model, cut, plan).equal
    with torch.no_grad():
        cut.norm.weight[0] += 1.0
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, cut, plan)


class Fields(dict):
    """An output with named fields, as transformers gives."""

    def to_tuple(self) -> tuple:
        return tuple(self.values())


class ManyOutputs(nn.Module):
    """Gives its hidden units away beside the logits, in an output with named fields or in a plain dict."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.kind = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3), kind

    def forward(self, x: Tensor) -> dict:
        hidden = self.norm(self.first(x))
        return self.kind(logits=self.second(hidden), hidden_states=hidden)


def test_further_fields_of_an_output_may_shrink_but_the_main_one_is_compared():
    torch.utils._pytree.register_pytree_node(
        Fields,
        lambda fields: (list(fields.values()), list(fields)),
        lambda values, names: Fields(zip(names, values)),
        flatten_with_keys_fn=lambda fields: (
            [(torch.utils._pytree.MappingKey(name), value) for name, value in fields.items()],
            list(fields),
        ),
    )
    x = torch.randn(2, 4)
    model = ManyOutputs(Fields)
    plan = planned(model, x)
    cut = apply(model, plan)
    assert cut(x)["hidden_states"].shape == (2, 3)
    assert check_values(model, cut, plan).equal
    with torch.no_grad():
        cut.second.bias[0] += 1.0
    with pytest.raises(VerificationError, match="logits.* differs"):
        check_values(model, cut, plan)
    plain = ManyOutputs(dict)
    with pytest.raises(VerificationError, match="hidden.* was to have shape"):
        check_values(plain, apply(plain, plan, verify=False), plan)


def test_an_axis_of_one_position_that_einsum_multiplies_is_no_difference():
    class Contracts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 5))
            self.out = nn.Parameter(torch.randn(3, 5, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("nhw,hwo->no", torch.einsum("nc,chw->nhw", x, self.weight).tanh(), self.out)

    model = Contracts()
    graph = trace(model, torch.randn(2, 4))
    smaller = apply(model, plan_from(graph, {graph.groups[0].name: [1]}))
    assert smaller.weight.shape == (4, 1, 5)


class Detector(nn.Module):
    """Passes on the places where one channel is positive, as many as there are."""

    def __init__(self, by_mask: bool) -> None:
        super().__init__()
        self.by_mask = by_mask
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.where, self.what = nn.Conv2d(8, 1, 1), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).relu()
        features, mask = features.movedim(1, -1).flatten(0, 2), self.where(features).flatten() > 0
        return self.what(features[mask if self.by_mask else mask.nonzero()[:, 0]])


@pytest.mark.parametrize("by_mask", [True, False])
def test_as_many_entries_as_values_say_are_proven_by_the_outputs(by_mask: bool):
    x = torch.randn(2, 3, 8, 8)
    counts = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = Detector(by_mask).eval()
        smaller = apply(model, planned(model, x))
        assert smaller.features.out_channels == 4
        counts.add(len(smaller(x)) - len(model(x)))
        masked = masked_copy(model, planned(model, x))
        torch.testing.assert_close(smaller(x), masked(x))
    assert counts != {0}  # others than in the dense model
    plan = planned(model, x)
    wrong = (replace(c, keep=(0, 1, 2, 4)) if (c.tensor, c.dim) == ("what.0.weight", 1) else c for c in plan.tensors)
    with pytest.raises(VerificationError, match="differs"):
        apply(model, replace(plan, tensors=tuple(wrong)))
