"""Memory: every expected number is counted by hand beside the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.evaluation.context import Context
from prunus.evaluation.memory import (
    MEASURES,
    LiveTensors,
    buffer_bytes,
    peak_activations,
    resident_peak,
    weight_bytes,
)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_weights_of_a_network_counted_by_hand():
    assert weight_bytes(mlp()) == 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert weight_bytes(mlp().to(torch.float16)) == 2 * (4 * 8 + 8 + 8 * 2 + 2)


def test_tied_weights_count_once_and_buffers_are_not_weights():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert weight_bytes(model) == 4 * (16 + 4 + 4)
    assert buffer_bytes(model) == 4 * (4 + 4) + 8  # two running statistics in float32, one int64 counter


def test_the_weights_of_resnet_50_are_97_mib():
    # 25,557,032 parameters, of which the number is all that matters here.
    model = nn.Module()
    model.register_parameter("all", nn.Parameter(torch.empty(25_557_032, device="meta")))
    measured = MEASURES["weight_memory"](Context(model))
    assert measured.details["bytes"] == 102_228_128
    assert measured.value == pytest.approx(97.49, abs=0.005)


def test_the_peak_of_a_small_network_counted_by_hand():
    # batch 3: the input takes 3*4*4 = 48 bytes and lives on; at the relu its argument and its result live, 3*8*4 each.
    peak = peak_activations(mlp(), torch.randn(3, 4))
    assert (peak.inputs, peak.bytes) == (48, 48 + 96 + 96)


def test_an_operator_in_place_and_views_take_nothing():
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x * 2
            h.relu_()
            return h.view(-1).view_as(h)

    assert peak_activations(InPlace(), torch.randn(3, 4)).bytes == 48 + 48


def test_a_skip_connection_keeps_its_tensor_alive():
    class Skips(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = x + 1
            h = kept * 2
            h = h * 2  # kept, the old and the new h: three
            return h + kept

    class Straight(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x + 1
            h = h * 2  # the old and the new h: two
            h = h * 2
            return h + 1

    x = torch.randn(10)
    assert peak_activations(Skips(), x).bytes == 40 + 3 * 40
    assert peak_activations(Straight(), x).bytes == 40 + 2 * 40


def test_what_is_freed_no_longer_lives_and_what_outlives_the_mode_does_no_harm():
    x = torch.randn(10)
    with LiveTensors([x]) as live:
        a = x + 1
        assert live.live == 40
        b = a[:5]  # a view of the same storage
        del a
        assert live.live == 40
        del b
        assert live.live == 0
        kept = x + 2
    del kept
    assert (live.live, live.peak) == (40, 40)


def test_convolutions_and_batch_norm_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    peak = peak_activations(model, torch.randn(2, 3, 6, 6))
    one = 2 * 8 * 6 * 6 * 4
    assert peak.bytes == 2 * 3 * 6 * 6 * 4 + 2 * one  # the convolution's result and the norm's


def test_modes_are_left_and_the_reference_and_the_batch_are_reported():
    model, dense = mlp().train(), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    context = Context(model, reference=dense, example_inputs=torch.randn(1, 4), options={"batch": 3})
    measured = MEASURES["peak_memory"](context)
    assert measured.value == 240 / 2**20
    assert measured.details["reference_bytes"] == 48 + 2 * 3 * 16 * 4
    assert measured.details["batch"] == 3
    assert "live tensors" in measured.how
    assert model.training


def test_resident_memory_rises_by_what_is_touched():
    risen = resident_peak(lambda: torch.ones(16 * 2**20).sum())
    if risen is None:
        pytest.skip("this system does not let a process reset its own peak")
    assert 48 * 2**20 < risen < 256 * 2**20


def test_resident_memory_is_part_of_the_measurement_on_demand():
    context = Context(mlp(), example_inputs=torch.randn(1, 4), options={"resident": True})
    found = MEASURES["peak_memory"](context).details["resident_bytes"]
    assert found is None or found >= 0
