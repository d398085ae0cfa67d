"""Measures of size: conventions, ratios, and the zoo's published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunus import zoo
from prunus.evaluation import MEASURES, evaluate
from prunus.evaluation.operators import count_operators
from prunus.evaluation.size import compression_ratio, reduction_percent


def masked(share: float = 0.9) -> nn.Linear:
    model = nn.Linear(100, 10, bias=False)
    prune.l1_unstructured(model, "weight", share)
    return model


def test_ratios_of_the_specification():
    assert compression_ratio(1000, 100) == 10
    assert reduction_percent(1000, 100) == 90
    assert compression_ratio(1000, 0) == float("inf")
    found = evaluate(
        masked(),
        measures=["sparsity", "compression_ratio", "compression_ratio_nonzero", "theoretical_speedup", "storage_bytes"],
        reference=nn.Linear(100, 10, bias=False),
        example_inputs=torch.randn(1, 100),
    )
    assert found["sparsity"].value == pytest.approx(0.9)
    assert found["compression_ratio"].value == 1.0, "a mask makes nothing smaller"
    assert found["compression_ratio_nonzero"].value == 10.0
    assert found["theoretical_speedup"].value == pytest.approx(10)
    assert found["theoretical_speedup"].details["stored_speedup"] == 1.0
    assert found["storage_bytes"].details["csr"] == 844
    assert found["storage_bytes"].value == 525


def test_sparsity_over_weights_and_over_everything():
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight[:5] = 0
        model.bias[:2] = 0
    found = evaluate(model, measures="sparsity")["sparsity"]
    assert found.value == found.details["prunable_weights"] == 0.5
    assert found.details["all_parameters"] == pytest.approx(52 / 110)
    assert found.details["layers"] == {"weight": 0.5}
    assert evaluate(nn.BatchNorm1d(3), measures="sparsity")["sparsity"].value is None


def test_the_three_conventions_are_kept_apart():
    model, x = nn.Conv2d(3, 64, 3, padding=1), torch.randn(2, 3, 32, 32)
    found = evaluate(model, measures=["macs", "flops_2x", "flops_survey"], example_inputs=x)
    assert [m.value for m in found.values()] == [1_769_472, 3_538_944, 3_670_016]
    assert [m.unit for m in found.values()] == ["MAC/sample", "FLOP/sample", "FLOP/sample"]


def test_a_cut_model_is_smaller_in_every_way():
    dense, cut = (nn.Sequential(nn.Conv2d(3, c, 3), nn.Flatten(), nn.Linear(36 * c, 10)) for c in (8, 4))
    names = ["parameters", "macs", "compression_ratio", "theoretical_speedup", "file_bytes"]
    found = evaluate(cut, measures=names, reference=dense, example_inputs=torch.randn(1, 3, 8, 8))
    after, before = 4 * 28 + 10 * 145, 8 * 28 + 10 * 289
    assert found["parameters"].value == after
    assert found["parameters"].details["reference"] == before
    assert found["compression_ratio"].value == before / after
    assert found["compression_ratio"].details["remaining"] == after / before
    assert found["macs"].details["reduction_percent"] == pytest.approx(50)
    assert found["theoretical_speedup"].value == pytest.approx(2)
    assert found["file_bytes"].value < found["file_bytes"].details["reference"]


def test_what_was_not_counted_is_said():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    found = evaluate(Fourier(), measures="macs", example_inputs=torch.randn(2, 4))["macs"]
    assert found.value == 0
    assert "not counted: aten::_fft_r2c" in found.how
    assert found.details["uncounted"] == {"aten::_fft_r2c": 1}


def test_operators_are_counted_once_for_all_measures():
    calls, model = [], nn.Linear(4, 4)
    model.register_forward_hook(lambda *_: calls.append(1))
    evaluate(model, measures=["macs", "flops_2x", "flops_survey"], example_inputs=torch.randn(1, 4))
    assert len(calls) == 1


def test_a_model_on_the_meta_device_has_a_size():
    found = evaluate(nn.Linear(4, 4, device="meta"), measures=["parameters", "macs"], example_inputs=torch.randn(1, 4))
    assert found["parameters"].value == 20
    assert found["parameters"].details["nonzero"] is None
    assert found["macs"].value == 16


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if "byte" in measure.unit])
def test_bytes_are_whole_numbers(name):
    assert isinstance(evaluate(nn.Linear(3, 3), measures=name)[name].value, int)


@pytest.mark.parametrize("name", list(zoo.MODELS))
def test_the_counter_finds_the_zoos_published_numbers(name):
    entry = zoo.MODELS[name]
    found = count_operators(zoo.build(name).to("meta"), torch.randn(2, *entry.input_shape))
    assert found.macs == entry.macs
    assert not found.uncounted
