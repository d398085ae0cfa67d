"""Groups, couplings, attributes and counts of networks that are hard to trace."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.errors import InputError, TraceError, UnknownNameError
from prunus.graph import plan_from, shapes_of
from prunus.graph.counting import macs, parameters
from prunus.graph.rules import RULES, keep_axes, register
from prunus.types import Graph

_spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
assert _spec is not None
assert _spec.loader is not None
architectures: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architectures)


def traced(name: str) -> tuple[nn.Module, Any, Graph]:
    torch.manual_seed(0)
    factory, inputs = architectures.ARCHITECTURES[name]
    model, x = factory().eval(), inputs()
    return model, x, prunus.trace(model, x)


def halves(graph: Graph, seed: int = 0) -> dict[str, list[int]]:
    """Random halves of every group; coupled groups keep proportional counts."""
    generator = torch.Generator().manual_seed(seed)
    step = {name: s for coupled in graph.coupled for name, s in coupled.steps.items()}
    keep = {}
    for group in graph.groups:
        s = step.get(group.name, 1)
        count = max(1, group.size // s // 2) * s
        keep[group.name] = sorted(torch.randperm(group.size, generator=generator)[:count].tolist())
    return keep


def test_padded_shortcut_couples_the_streams_and_the_padding_follows():
    model, x, graph = traced("padded_shortcut")
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes == {"stem": 8, "wide[0:4]": 4, "wide[12:16]": 4}
    plan = plan_from(graph, {"wide[0:4]": [1], "stem": [0, 5, 6]})
    assert {(a.name, a.new) for a in plan.attributes} == {("pad_before", 1)}
    assert prunus.apply(model, plan)(x).shape == (2, 4)


def test_grouped_queries_keep_heads_repeats_and_widths_apart():
    _, _, graph = traced("grouped_queries")
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes["q/0"] == 4
    assert sizes["q/1"] == 2
    assert sizes["q/2"] == 8
    assert [dict(c.steps) for c in graph.coupled] == [{"q/2": 1, "v/1": 1}]


def test_fused_heads_are_groups_and_their_attributes_follow():
    model, _, graph = traced("fused_heads")
    plan = plan_from(graph, {"qkv/1": [0, 3], "qkv/2": [0, 1, 2, 5, 6]})
    smaller = prunus.apply(model, plan)
    assert (smaller.num_heads, smaller.head_dim, smaller.inner) == (2, 5, 10)
    assert smaller.qkv.weight.shape == (30, 32)
    assert smaller.proj.in_features == 10


def test_torch_encoder_layers_shrink_width_and_head_width_in_proportion():
    _, _, graph = traced("encoder")
    (coupled,) = graph.coupled
    assert sorted(coupled.steps.values()) == [1, 1, 4]


def test_chunks_keep_equal_counts():
    _, _, graph = traced("scaled_chunks")
    (coupled,) = graph.coupled
    assert len(coupled.steps) == 4
    with pytest.raises(InputError, match="in proportion"):
        plan_from(graph, {next(iter(coupled.steps)): [0]})


def test_sizes_written_as_numbers_pin_their_axis_with_a_reason_and_a_source_line():
    _, _, graph = traced("literals")
    assert [g.name for g in graph.groups] == ["first"]
    refusal = next(r for r in graph.unprunable if r.what.startswith("second.weight dimension 0"))
    assert "reshape" in refusal.reason
    assert refusal.source.startswith("architectures.py:")
    assert "attribute" in refusal.remedy


def test_tied_weights_are_one_tensor_and_the_vocabulary_is_left_alone():
    model, _, graph = traced("tied_and_reused")
    assert parameters(graph) == sum(p.numel() for p in model.parameters())
    assert graph.tensors["embed.weight"].aliases == ("head.weight",)
    smaller: Any = prunus.apply(model, plan_from(graph, halves(graph)))
    assert smaller.head.weight is smaller.embed.weight


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_cut_networks_run_equal_their_masked_selves_and_cost_what_was_predicted(name: str, seed: int):
    model, x, graph = traced(name)
    plan = plan_from(graph, halves(graph, seed))
    smaller = prunus.apply(
        model, plan
    )  # compares shapes, and outputs with the masked model, and raises on a difference
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.parameters
    again = prunus.trace(smaller, x)
    assert (parameters(again), macs(again)) == (plan.after.parameters, plan.after.macs)
    assert plan.after.parameters < plan.before.parameters


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_group_can_be_cut_alone(name: str):
    model, _, graph = traced(name)
    coupled = {n: c for c in graph.coupled for n in c.steps}
    everything = halves(graph)
    for group in graph.groups:
        chosen = coupled[group.name].steps if group.name in coupled else {group.name: 1}
        plan = plan_from(graph, {n: everything[n] for n in chosen})
        smaller = prunus.apply(model, plan)
        assert sum(p.numel() for p in smaller.parameters()) == plan.after.parameters < plan.before.parameters


def test_tracing_changes_nothing():
    model, x, _ = traced("padded_shortcut")
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    prunus.trace(model, x)
    assert model.training
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert type(model.pad_before) is int
    assert model.stem(x).requires_grad


def test_two_traces_show_the_same_operators():
    model, x, graph = traced("encoder")
    shapes = shapes_of(model, x)
    assert [(s.name, s.module) for s in shapes] == [(o.name, o.module) for o in graph.operators]


def test_a_model_without_weights_is_traced_and_counted():
    with torch.device("meta"):
        model = architectures.GroupedQueries(width=4096, heads=32, kv_heads=8)
    graph = prunus.trace(model, torch.randn(2, 5, 4, device="meta"))
    assert parameters(graph) == sum(p.numel() for p in model.parameters())


def test_an_operator_without_rule_freezes_what_it_touches_and_says_so():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.linalg.qr(self.a(x))[0] @ torch.ones(4, 8))

    graph = prunus.trace(Model(), torch.randn(4, 4))
    assert graph.uncounted == ("aten::linalg_qr",)
    assert any(r.operator == "aten::linalg_qr" and "register" in r.remedy for r in graph.unprunable)
    assert all(g.name != "a" for g in graph.groups)


def test_a_rule_of_ones_own_is_one_line():
    library = torch.library.Library("prunus_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    register("prunus_test::twice", keep_axes)
    try:

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.b(F.relu(torch.ops.prunus_test.twice(self.a(x))))

        assert [g.name for g in prunus.trace(Model(), torch.randn(2, 4)).groups] == ["a"]
    finally:
        del RULES["prunus_test::twice"]


@pytest.mark.parametrize("keep", ["stem", ["st*"], [lambda name: name == "stem"]])
def test_kept_modules_keep_their_outputs(keep: Any):
    factory, inputs = architectures.ARCHITECTURES["padded_shortcut"]
    graph = prunus.trace(factory(), inputs(), keep=keep)
    assert "stem" not in {g.name for g in graph.groups}
    assert any("keep=" in r.reason for r in graph.unprunable)


def test_bad_arguments_say_what_would_work():
    model, x, _ = traced("padded_shortcut")
    with pytest.raises(UnknownNameError, match="did you mean 'stem'"):
        prunus.trace(model, x, keep=["stm"])
    with pytest.raises(InputError, match="tensor, a tuple of tensors or a dict"):
        prunus.trace(model, 3)
    with pytest.raises(TraceError, match=r"\(2, 5, 8, 8\)"):
        prunus.trace(model, torch.randn(2, 5, 8, 8))
    with pytest.raises(InputError, match="outputs"):
        prunus.trace(model, x, outputs="all")
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        prunus.trace(lambda x: x, x)  # type: ignore[arg-type]


class UnreadToken(nn.Module):
    """A parameter that only training reads."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.second(h + self.token if self.training else h)


def test_a_parameter_that_only_training_reads_follows_and_one_that_nothing_reads_stays_whole():
    model = UnreadToken()
    model.forgotten = nn.Parameter(torch.randn(8))
    graph = prunus.trace(model, torch.randn(2, 4))
    assert [g.name for g in graph.groups] == ["first"]
    assert "token" in {p.tensor for p in graph.groups[0].places}
    assert any(r.what.startswith("forgotten") and "nothing reads it" in r.reason for r in graph.unprunable)


class Transposed(nn.Module):
    """A linear layer that reads a transposed tensor, by way of a batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.project, self.head = nn.Conv1d(3, 6, 1), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.project(self.conv(x).transpose(1, 2)))


def test_rows_of_a_layer_behind_a_transposed_tensor_make_its_units():
    graph = prunus.trace(Transposed(), torch.randn(2, 3, 5))
    assert {(p.tensor, p.dim, p.role) for p in graph.group("project").places} >= {("project.weight", 0, "out")}


class Best(nn.Module):
    """A top-k over the last dimension, with k as large as the number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(hidden) * self.gate(hidden).topk(2, -1).values


def test_a_top_k_fixes_the_dimension_that_it_ranks():
    model = Best()
    graph = prunus.trace(model, torch.randn(3, 4))
    assert {group.name for group in graph.groups} == {"first"}
    assert any(r.what.startswith("gate.weight") and "order of its positions" in r.reason for r in graph.unprunable)
