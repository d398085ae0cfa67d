"""Networks on graphs: a sparse adjacency among the inputs or buffers stays as it is, and what it multiplies is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.graph import inputs as example_inputs
from prunus.statistics.state import preserved

NODES = 10
DRAW = torch.Generator().manual_seed(0)
LINKS = (torch.rand(NODES, NODES, generator=DRAW) < 0.4).float()
X = torch.randn(NODES, 8, generator=DRAW)
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda links, x: links @ x,
    "from the right": lambda links, x: (x.T @ links).T,
    "sparse.mm": torch.sparse.mm,
    "sparse.addmm": lambda links, x: torch.sparse.addmm(x, links, x),
    "dense": lambda links, x: links.to_dense() @ x,
}

PRODUCTS = [
    (way, layout)
    for way in WAYS
    for layout in LAYOUTS
    if layout is not torch.sparse_csc or not way.startswith("sparse.")  # torch has no such product
]


class Convolution(nn.Module):
    """Two layers with one step along the links between them."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor], links: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(8, 16), nn.Linear(16, 3), way
        self.register_buffer("links", links)

    def forward(self, x: Tensor, links: Tensor | None = None) -> Tensor:
        given = self.links if links is None else links
        assert isinstance(given, Tensor)
        return self.last(torch.relu(self.way(given, self.first(x))))


def network(way: Callable[[Tensor, Tensor], Tensor], layout: torch.layout, *, buffer: bool) -> tuple[Convolution, Any]:
    links = LINKS.to_sparse(layout=layout)
    return Convolution(way, links if buffer else None).eval(), X if buffer else (X, links)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("way", "layout"), PRODUCTS, ids=str)
@pytest.mark.parametrize("buffer", [True, False])
def test_units_on_both_sides_of_a_sparse_matrix_go_and_entries_are_counted(way, layout, buffer):
    model, example = network(WAYS[way], layout, buffer=buffer)
    result = prunus.prune(model, example, ratio=0.5)
    assert result.verified.equal
    assert result.model.first.out_features == result.model.last.in_features == 8
    entries = NODES * NODES if way == "dense" else int(LINKS.sum())
    for row, width in ((result.report.before, 16), (result.report.after, 8)):
        assert row.macs == pytest.approx((NODES * (8 * width + width * 3) + entries * width) / NODES, abs=1)


def test_inputs_that_were_described_are_made_again_in_their_layout():
    links = LINKS.to_sparse()
    spec = example_inputs.describe((X, links))
    assert spec.tensors["1"] == ((NODES, NODES), "float32 sparse_coo", 1.0, 1.0)
    again = example_inputs.make(spec)
    assert again[0].layout is torch.strided
    assert (again[1].layout, again[1].shape) == (torch.sparse_coo, links.shape)


def test_a_result_with_a_sparse_input_is_saved_and_loaded(tmp_path):
    model, example = network(WAYS["matmul"], torch.sparse_csr, buffer=False)
    result = prunus.prune(model, example, ratio=0.5)
    prunus.save(result, tmp_path / "small")
    loaded = prunus.load(tmp_path / "small", Convolution(WAYS["matmul"]))
    assert torch.equal(loaded.eval()(*example), result.model(*example))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_statistics_are_gathered_beside_a_sparse_buffer(layout):
    model, example = network(WAYS["matmul"], layout, buffer=True)
    targets = torch.arange(NODES) % 3
    options: Any = {"data": [(example, targets)], "loss": nn.functional.cross_entropy, "ratio": 0.5}
    result = prunus.prune(model, example, criterion="taylor_weight", **options)
    assert result.model.first.out_features == 8


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_sparse_buffer_that_was_changed_comes_back(layout):
    model, _ = network(WAYS["matmul"], layout, buffer=True)
    links = model.links
    assert isinstance(links, Tensor)
    with preserved(model):
        (links._values() if layout is torch.sparse_coo else links.values()).mul_(2)
    assert torch.equal(links.to_dense(), LINKS)
