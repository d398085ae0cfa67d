"""Sensitivity: exact on linear models, zero for what is not used, and nothing written to the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunus.data.split import Split
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.evaluation.context import Context
from prunus.evaluation.sensitivity import (
    MEASURES,
    additive,
    channel_variables,
    feature_variables,
    noise,
    occlusion,
    parameter_sensitivity,
    patch_variables,
    spearman,
    variable_sensitivity,
)

W = torch.tensor([2.0, -3.0, 0.0, 0.5])


def linear(x: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1) @ W)[:, None]


def test_an_added_delta_changes_a_linear_score_by_the_weight_times_delta():
    found = variable_sensitivity(
        linear, [torch.randn(5, 4), torch.randn(3, 4)], feature_variables((4,)), additive(0.25)
    )
    assert found.change == pytest.approx([0.5, 0.75, 0.0, 0.125], abs=1e-6)
    assert found.change[2] == 0.0  # an unused feature does nothing at all


def test_noise_changes_a_linear_score_by_its_mean_deviation():
    deviation = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = [torch.randn(4000, 4, dtype=torch.float32)]
    found = variable_sensitivity(linear, x, feature_variables((4,)), noise(0.1, deviation), repeats=3)
    half_normal = (2 / torch.pi) ** 0.5  # mean of |n|
    assert found.change == pytest.approx((0.1 * half_normal * W.abs() * deviation).tolist(), rel=0.03)


def test_occlusion_puts_the_mean_there():
    x = torch.randn(50, 4)
    found = variable_sensitivity(linear, [x], feature_variables((4,)), occlusion(x.mean(0)), repeats=1)
    assert found.change == pytest.approx((W.abs() * (x - x.mean(0)).abs().mean(0)).tolist(), rel=1e-4)


def test_patches_and_channels_divide_a_sample():
    patches = patch_variables((3, 10, 6), grid=4)
    assert len(patches.names) == 16
    assert torch.equal(patches.masks.int().sum(0), torch.ones(3, 10, 6, dtype=torch.int32))
    assert patches.masks[0].nonzero()[:, 1].max() == 2  # ten rows in four cells: 3, 2, 3, 2
    assert len(patch_variables((1, 3, 3), grid=8).names) == 9
    channels = channel_variables((3, 2, 2))
    assert torch.equal(channels.masks.int().sum(0), torch.ones(3, 2, 2, dtype=torch.int32))
    assert channels.masks[1].nonzero()[:, 0].unique().tolist() == [1]


def test_variables_of_another_shape_and_no_samples_are_refused():
    with pytest.raises(ShapeError, match="masks of shape"):
        variable_sensitivity(linear, [torch.randn(2, 5)], feature_variables((4,)), additive(1))
    with pytest.raises(InputError, match="no sample"):
        variable_sensitivity(linear, [], feature_variables((4,)), additive(1))
    with pytest.raises(InputError, match="repeats"):
        variable_sensitivity(linear, [torch.randn(2, 4)], feature_variables((4,)), additive(1), repeats=0)


def test_rank_correlation_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="SciPy, the oracle, is not installed")
    for _ in range(20):
        a, b = torch.randint(0, 6, (2, 12)).tolist()
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ShapeError, match="spearman"):
        spearman([1], [1, 2])


def test_weights_that_matter_more_are_more_sensitive_and_the_model_is_not_written():
    last = nn.Linear(3, 3)
    nn.init.zeros_(last.weight)  # relative noise on zeros is no noise
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), last).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [(torch.randn(6, 4), torch.arange(6) % 3)]
    found = parameter_sensitivity(model, batches, repeats=3)
    assert list(found) == ["0.weight", "2.weight", "3.weight"]
    assert found["3.weight"] == (0.0, 0.0, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.training


def test_the_change_of_the_loss_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 1])
    generator = torch.Generator().manual_seed(9)
    noisy = layer.weight * (1 + 0.5 * torch.randn(2, 2, generator=generator))
    expected = functional.cross_entropy(x @ noisy.T, y) - functional.cross_entropy(layer(x), y)
    found = parameter_sensitivity(layer, [(x[:2], y[:2]), (x[2:], y[2:])], relative=0.5, repeats=1, seed=9)
    assert found["weight"][0] == pytest.approx(abs(expected.item()), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"relative": 0.0}, {"batches": []}])
def test_settings_that_make_no_sense_are_refused(wrong):
    batches = wrong.pop("batches", [(torch.randn(1, 2), torch.tensor([0]))])
    with pytest.raises(InputError, match="parameter_sensitivity"):
        parameter_sensitivity(nn.Linear(2, 2), batches, **wrong)


class SeesTopLeft(nn.Module):
    """Its logits are sums of the upper left quarter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, :, :4, :4].sum((1, 2, 3))[:, None])


def measured(name: str, model: nn.Module, data, reference: nn.Module | None = None, **options) -> Any:
    return MEASURES[name](Context(model, data, reference, batch_size=16, options=options))


def images() -> Split:
    return Split(torch.rand(40, 2, 8, 8), torch.arange(40) % 3)


@pytest.mark.parametrize("perturbation", ["noise", "occlusion"])
def test_the_measure_finds_the_patch_that_is_looked_at(perturbation):
    found = measured("vpm", SeesTopLeft(), images(), grid=2, perturbation=perturbation)
    assert found.details["most_sensitive"] == "patch 0,0"
    assert found.details["change"][1:] == [0, 0, 0]
    assert found.value == pytest.approx(found.details["change"][0] / 4)
    assert found.details["n"] == 40


def test_a_model_ranks_its_variables_like_itself():
    model = SeesTopLeft()
    found = measured("vpm", model, images(), model, variables="channels")
    assert found.details["change"] == found.details["reference_change"]
    assert found.details["spearman"] == 1.0
    weights = measured(
        "parameter_sensitivity", nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.Linear(5, 3)), images()
    )
    assert set(weights.details["layers"]) == {"1.weight", "2.weight"}
    assert weights.value > 0


def test_samples_are_limited_and_the_seed_decides():
    model, data = SeesTopLeft(), images()
    first, second = (measured("vpm", model, data, samples=10) for _ in range(2))
    assert first == second
    assert first.details["n"] == 10


def test_options_and_data_that_do_not_fit_are_refused():
    model = SeesTopLeft()
    with pytest.raises(UnknownNameError, match="patches"):
        measured("vpm", model, images(), variables="patchs")
    with pytest.raises(UnknownNameError, match="occlusion"):
        measured("vpm", model, images(), perturbation="occlude")
    with pytest.raises(ShapeError, match="features"):
        measured("vpm", model, images(), variables="features")
    with pytest.raises(InputError, match="floating"):
        measured("vpm", model, [(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3).long())])
    with pytest.raises(InputError, match="samples=0"):
        measured("parameter_sensitivity", model, images(), samples=0)


def test_a_model_without_matrices_has_no_layer_to_perturb():
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    found = measured("parameter_sensitivity", Scales(), [(torch.rand(4, 3), torch.arange(4) % 3)])
    assert found.value is None
    assert "no weight" in found.how
