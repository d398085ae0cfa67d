from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from prunus.allocation.latency_table import (
    BUILDERS,
    LatencyTable,
    LayerTime,
    measure_latency_table,
    predict,
    seconds_of,
)
from prunus.errors import InputError
from prunus.graph import trace
from prunus.types import Fixed, Operator, Units

from .small_graphs import chain


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("8ms", 0.008), ("1.5 s", 1.5), ("300us", 3e-4), ("20µs", 2e-5), (0.5, 0.01), ("25%", 0.005), (1, 0.02)],
)
def test_latency_targets(given, seconds):
    assert seconds_of(given, 0.02) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["8", "fast", "-3ms", "0ms", 0, -1, 8, True, float("nan")])
def test_what_is_no_latency_is_refused(given):
    with pytest.raises(InputError, match="'8ms'"):
        seconds_of(given, 0.02)


def test_times_are_interpolated_in_both_widths_and_scaled_by_the_correction():
    a, b = Units("g0", 8), Units("g1", 8)
    # seconds = out * in, which is bilinear: exact in between
    grid = tuple(tuple(float(out * read) for read in (2, 8)) for out in (4, 8))
    layer = LayerTime(b, a, (4, 8), (2, 8), grid)
    assert layer.at({"g0": 5, "g1": 6}) == pytest.approx(30)
    assert layer.at(None) == 64
    assert layer.at({"g0": 1, "g1": 1}) == 8, "below the grid: as slow as its smallest width"
    table = LatencyTable((layer,), 0.0, 64.0, "cpu", correction=2.0)
    assert predict(table, chain([8, 8]), {"g0": 5, "g1": 6}) == pytest.approx(60)


def test_the_remainder_follows_what_the_other_operators_write():
    graph = chain([8, 8])
    relu = Operator("relu", "", "", ((Fixed(2), Units("g0", 8)),))
    graph = dataclasses.replace(graph, operators=(*graph.operators, relu))
    table = LatencyTable((), 4.0, 4.0, "cpu")
    assert predict(table, graph) == 4
    assert predict(table, graph, {"g0": 2, "g1": 1}) == 1


class Zoo(nn.Module):
    """One layer of every kind that is timed, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1)
        self.embed = nn.Embedding(4, 6)
        self.line = nn.Conv1d(6, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.up(self.grouped(self.depthwise(self.first(x)).relu())).flatten(2)
        x = x + self.embed(torch.zeros(x.shape[0], dtype=torch.int64)).unsqueeze(-1)
        return self.head(self.line(x).mean(2))


def test_every_kind_of_layer_is_timed_at_the_size_that_it_has_in_the_network():
    model = Zoo().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 16, 16)
    graph = trace(model, x)
    for operator in graph.operators:
        module = model.get_submodule(operator.module)
        if operator.weight and type(module) in BUILDERS:
            sizes = tuple(axis.size for axis in operator.outputs[0])
            out, read = model.get_parameter(operator.weight).shape[:2]
            if isinstance(module, nn.ConvTranspose2d):
                out, read = read, out
            layer, shape = BUILDERS[type(module)](module, out, read, sizes)
            assert tuple(layer(torch.zeros(shape)).shape) == sizes
            assert [tuple(p.shape) for p in layer.parameters()] == [tuple(p.shape) for p in module.parameters()]
    ticks = itertools.count()
    table = measure_latency_table(
        model, graph, dense_seconds=10.0, fractions=(0.5, 1.0), min_seconds=0, clock=lambda: float(next(ticks))
    )
    assert len(table.layers) == 6
    assert all(layer.at(None) == 1.0 for layer in table.layers), "the clock ticks once per call"
    assert table.remainder == 4.0
    assert predict(table, graph) == pytest.approx(10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_layers_that_take_longer_alone_than_in_the_network_are_corrected():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    graph = trace(model, torch.randn(2, 4))
    ticks = itertools.count()
    table = measure_latency_table(model, graph, 0.5, min_seconds=0, clock=lambda: float(next(ticks)))
    assert table.remainder == 0
    assert table.correction == 0.25
    assert predict(table, graph) == pytest.approx(0.5)


def test_equal_layers_are_timed_once():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).eval()
    graph = trace(model, torch.randn(2, 6))
    calls = []
    ticks = itertools.count()
    measure_latency_table(
        model, graph, 1.0, fractions=(1.0,), min_seconds=0, clock=lambda: calls.append(0) or float(next(ticks))
    )
    assert len(calls) == 10, "five calls, begun and ended"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_the_dense_latency_must_be_a_time(seconds):
    with pytest.raises(InputError, match="dense_seconds"):
        measure_latency_table(nn.Linear(1, 1), chain([2]), seconds)
