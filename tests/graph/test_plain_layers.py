"""Built-in recurrent and attention layers, sizes in comparisons and factors, indexing by values, complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.graph import inputs as example
from prunus.graph import plan_from
from prunus.types import Graph


class Reads(nn.Module):
    """A module around a function of some layers."""

    def __init__(self, forward: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def halves(graph: Graph) -> dict[str, range]:
    return {g.name: range(g.size // 2, g.size) for g in graph.groups}


def cut(model: nn.Module, inputs: Any, keep: Callable[[Graph], Any] = halves) -> tuple[nn.Module, Graph]:
    """Cut as `keep` says; `apply` compares the outputs with those of the zeroed model, if the plan is neutral."""
    graph = prunus.trace(model.eval(), inputs)
    plan = plan_from(graph, keep(graph))
    smaller = prunus.apply(model, plan)
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.parameters < plan.before.parameters
    with torch.no_grad():
        assert example.call(smaller, inputs).shape == example.call(model, inputs).shape
    return smaller, graph


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}])
def test_hidden_units_of_a_recurrent_layer_go_with_all_their_gates(kind: type[nn.RNNBase], how: dict[str, Any]):
    rnn = kind(5, 6, **how)
    model = Reads(lambda m, x: m.head(m.rnn(x)[0]), rnn=rnn, head=nn.Linear(6 * (1 + rnn.bidirectional), 3))
    smaller, graph = cut(model, torch.randn(2, 4, 5))
    assert smaller.rnn.hidden_size == 3
    assert sum(g.size for g in graph.groups) == 6 * rnn.num_layers * (1 + rnn.bidirectional)


def test_all_layers_and_directions_stay_equally_wide():
    model = Reads(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.GRU(5, 6, 2, bidirectional=True), head=nn.Linear(12, 3))
    graph = prunus.trace(model, torch.randn(4, 2, 5))
    (coupled,) = graph.coupled
    assert len(coupled.steps) == 4
    assert "all tensors of a GRU have its hidden_size" in coupled.reason


def test_a_row_of_zeros_that_is_written_into_is_tied_to_what_is_written():
    def forward(m: Any, x: Tensor) -> Tensor:
        both = x.new_zeros(2, x.shape[0], m.width)
        both[0].copy_(m.first(x))
        both[1].add_(m.second(x))
        return m.head(both.sum(0))

    model = Reads(forward, first=nn.Linear(3, 8), second=nn.Linear(3, 8), head=nn.Linear(8, 2))
    model.width = 8
    smaller, graph = cut(model, torch.randn(5, 3))
    assert [g.name for g in graph.groups] == ["first"]
    assert smaller.width == 4


def test_rows_of_a_stack_are_read_apart_and_tied_by_the_whole():
    layers = {name: nn.Linear(3, 8) for name in "abc"} | {"head": nn.Linear(8, 2)}
    rows = Reads(lambda m, x: m.head(torch.stack([m.a(x), m.b(x), m.c(x)])[1]), **layers)
    assert prunus.trace(rows, torch.randn(5, 3)).group("b").size == 8
    whole = Reads(lambda m, x: m.head(torch.stack([m.a(x), m.b(x), m.c(x)]).sum(0)), **layers)
    assert len(prunus.trace(whole, torch.randn(5, 3)).groups) == 1
    cut(rows, torch.randn(5, 3))
    cut(whole, torch.randn(5, 3))


def test_a_projection_and_the_cells_behind_it_are_cut_apart():
    model = Reads(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(5, 8, 2, proj_size=4), head=nn.Linear(4, 3))
    smaller, _ = cut(model, torch.randn(4, 2, 5))
    assert (smaller.rnn.hidden_size, smaller.rnn.proj_size) == (4, 2)


def test_cross_attention_follows_the_width_of_its_queries():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    layers = {"q": nn.Linear(3, 8), "k": nn.Linear(3, 6), "v": nn.Linear(3, 4), "head": nn.Linear(8, 2)}
    model = Reads(lambda m, x: m.head(m.a(m.q(x), m.k(x), m.v(x))[0]), a=attention, **layers)
    smaller, graph = cut(model, torch.randn(2, 5, 3))
    assert (smaller.a.embed_dim, smaller.a.kdim, smaller.a.vdim) == (4, 3, 2)
    assert smaller.a.num_heads * smaller.a.head_dim == 4
    assert any("factor made from its size" in g.why_not_neutral for g in graph.groups)


def test_extra_keys_and_values_follow_the_width():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    model = Reads(
        lambda m, x: m.head(m.a(*[m.embed(x)] * 3)[0]), a=attention, embed=nn.Linear(3, 8), head=nn.Linear(8, 2)
    )
    smaller, _ = cut(model, torch.randn(5, 2, 3))
    assert smaller.a.bias_k.shape == (1, 1, 4)


def test_a_compared_size_follows_the_axis_that_it_was_equal_to():
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        if x.size(-1) != m.width:
            raise ValueError("wrong width")
        return m.head(x)

    model = Reads(forward, first=nn.Linear(3, 8), head=nn.Linear(8, 2))
    model.width = 8
    smaller, _ = cut(model, torch.randn(2, 3))
    assert smaller.width == 4


def test_a_size_compared_with_a_number_stays():
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.head(x if x.shape[-1] == 8 else x * 2)

    model = Reads(forward, first=nn.Linear(3, 8), head=nn.Linear(8, 2))
    graph = prunus.trace(model, torch.randn(2, 3))
    assert not graph.groups
    assert any("compares it" in r.reason for r in graph.unprunable)


@pytest.mark.parametrize("scaled", [lambda x: x / x.shape[-1], lambda x: x * x.shape[-1] ** -0.5])
def test_a_factor_made_from_a_size_is_not_neutral(scaled: Callable[[Tensor], Tensor]):
    model = Reads(lambda m, x: m.head(scaled(m.first(x))), first=nn.Linear(3, 8), head=nn.Linear(8, 2))
    _, graph = cut(model, torch.randn(2, 3))
    assert not graph.group("first").neutral


EDGES = torch.tensor([0, 2, 1, 0, 2])
INDEXED: dict[str, Callable[[Tensor], Tensor]] = {
    "index_add": lambda x: torch.zeros_like(x).index_add(0, EDGES, x[EDGES]),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(0, EDGES[:, None].expand(-1, x.shape[1]), x[EDGES]),
    "scatter_reduce": lambda x: x.scatter_reduce(0, EDGES[:, None].expand_as(x[EDGES]), x[EDGES], "amax"),
    "gather": lambda x: x.gather(0, EDGES[:, None].expand(-1, x.shape[1])),
    "rows": lambda x: x[EDGES][torch.tensor([True, False, True, True, False])],
    "apart": lambda x: x[:, None, :, None].expand(-1, 2, -1, 2)[EDGES, :, :, 1].sum(1),
    "written": lambda x: x.index_put((EDGES,), 2 * x[EDGES]),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_rows_chosen_by_values_leave_the_columns_free(kind: str):
    model = Reads(lambda m, x: m.head(INDEXED[kind](m.first(x))), first=nn.Linear(3, 8), head=nn.Linear(8, 2))
    _, graph = cut(model, torch.randn(4, 3))
    assert [g.name for g in graph.groups] == ["first"]


class ComplexLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


def test_complex_units_go_with_both_parts():
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(torch.fft.fft(x))
        return m.second(torch.complex(F.relu(y.real), F.relu(y.imag)).conj()).abs()

    model = Reads(forward, first=ComplexLayer(5, 8), second=ComplexLayer(8, 2))
    result = prunus.prune(model, torch.randn(3, 5), ratio=0.5)
    assert result.model.first.weight.shape == (4, 5)
    magnitude = model.first.weight.detach().abs().pow(2).sum(1).sqrt()
    torch.testing.assert_close(result.scores.values[result.graph.groups[0].name], magnitude)


def test_a_group_that_is_read_in_no_usual_place_is_scored_where_it_stands():
    model = Reads(
        lambda m, x: m.head(x @ (m.left @ m.right)), left=nn.Parameter(torch.randn(4, 6)), head=nn.Linear(5, 2)
    )
    model.right = nn.Parameter(torch.randn(6, 5))
    assert prunus.prune(model, torch.randn(3, 4), ratio=0.5).model.left.shape == (4, 3)
