from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.language import BlockOptions, outlier_share, prune_block
from prunus.layerwise import SOLVERS, Target, input_scores, pruned_of
from prunus.statistics.linear_inputs import LinearInputs


class Block(nn.Module):
    """Two layers that read the same tensor, one that reads another, one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.idle = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(torch.relu(self.q(y)) * self.k(y))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


@pytest.fixture
def chunks() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 7, 16) + 1 for _ in range(3)]


def read_by(block: Block, chunks: list[Tensor]) -> dict[str, Tensor]:
    """Rows that each layer reads, computed without hooks."""
    y = torch.cat([block.norm(x) for x in chunks]).reshape(-1, 16)
    return {"q": y, "k": y, "down": torch.relu(block.q(y)) * block.k(y)}


def test_moments_equal_those_of_all_rows_at_once(block, chunks):
    layers = {name: block.get_submodule(name) for name in ("q", "k", "down", "idle")}
    reader = LinearInputs(layers, full=True)
    with torch.no_grad(), reader.watching():
        for x in chunks:
            reader.next_pass()
            block(x)
    found = reader.moments()
    for name, rows in read_by(block, chunks).items():
        assert found[name].count == 42
        torch.testing.assert_close(found[name].mean, rows.mean(0))
        torch.testing.assert_close(found[name].norm, rows.norm(dim=0))
        torch.testing.assert_close(found[name].matrix, rows.T @ rows / 42)
        torch.testing.assert_close(found[name].variance, rows.var(0, correction=0), atol=1e-5, rtol=1e-4)
    assert found["q"] is found["k"]
    assert reader.shared == {"q": "q", "k": "q", "down": "down"}
    assert "idle" not in found
    assert not any(layer._forward_pre_hooks for layer in block.modules())


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_outputs_and_errors_are_those_of_the_block(block, chunks, method, propagate):
    dense = copy.deepcopy(block)
    result = prune_block(block, chunks, BlockOptions(method, 0.5, propagate=propagate))
    says = block if propagate == "pruned" else dense
    torch.testing.assert_close(torch.stack(list(result.outputs)), torch.stack([says(x) for x in chunks]))
    weights = dict(block.named_parameters())
    for one in result.weights:
        assert one.zeros == (weights[one.name] == 0).sum() == (~result.masks[one.name]).sum()
        if SOLVERS[method].reads == "matrix":
            rows, layer = read_by(dense, chunks)[one.name[:-7]], one.name
            before, after = (rows @ source[layer].T for source in (dict(dense.named_parameters()), weights))
            assert one.error == pytest.approx(
                ((after - before).square().sum() / before.square().sum()).item(), rel=1e-3
            )
    names = {one.name for one in result.weights}
    assert names == {"q.weight", "k.weight", "down.weight"} | ({"idle.weight"} if method == "magnitude" else set())
    if method != "magnitude":
        assert [(one.what, one.reason) for one in result.left] == [
            ("idle.weight", "it never ran on the calibration tokens")
        ]


def test_wanda_uses_norms_of_what_each_layer_reads(block, chunks):
    dense = copy.deepcopy(block)
    prune_block(block, chunks, BlockOptions("wanda", "2:4"))
    for name, rows in read_by(dense, chunks).items():
        weight = dense.get_submodule(name).weight.detach()
        gone = pruned_of(input_scores(weight, rows.norm(dim=0).detach()), Target.of("2:4"))
        assert torch.equal(block.get_submodule(name).weight.detach(), weight.masked_fill(gone, 0.0))


def test_two_processes_add_their_sums(block, chunks):
    """Sums of two halves, exchanged, are those of the whole."""
    halves: list[list[Tensor]] = []
    for part in (chunks[:1], chunks[1:]):
        sums: list[Tensor] = []
        halves.append(sums)
        prune_block(copy.deepcopy(block), part, BlockOptions("sparsegpt"), combine=lambda s, to=sums: to.append(s) or s)
    others = iter(halves[1])
    split = prune_block(copy.deepcopy(block), chunks[:1], BlockOptions("sparsegpt"), combine=lambda s: s + next(others))
    whole = prune_block(copy.deepcopy(block), chunks, BlockOptions("sparsegpt"))
    for name, mask in whole.masks.items():
        assert torch.equal(split.masks[name], mask)


def test_zero_sparsity_changes_nothing(block, chunks):
    before = copy.deepcopy(block.state_dict())
    result = prune_block(block.train(), chunks, BlockOptions("sparsegpt", 0.0))
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())
    assert all(one.error == 0 for one in result.weights)
    assert block.training
    assert block.down.training


def test_what_is_kept_and_what_does_not_fit_stays(block, chunks):
    result = prune_block(block, chunks, BlockOptions("magnitude", 0.5, "16x16", keep=("q", "elsewhere.*")))
    assert {one.what: one.reason for one in result.left}["q.weight"]
    assert {one.what for one in result.left} == {"q.weight", "k.weight", "down.weight"}
    assert (block.q.weight != 0).all()


def test_a_store_takes_the_outputs(block, chunks):
    seen: list[int] = []
    result = prune_block(block, chunks, BlockOptions(), store=lambda number, output: seen.append(number))
    assert seen == [0, 1, 2]
    assert result.outputs == []


def test_outliers_are_counted_over_all_scores_of_the_block(block, chunks):
    with torch.no_grad():
        block.q.weight[3, 4] = 40.0
    rows = read_by(block, chunks)
    scores = torch.cat([(block.get_submodule(n).weight.abs() * r.norm(dim=0)).flatten() for n, r in rows.items()])
    expected = 100 * float((scores > 3 * scores.mean()).double().mean())
    outputs: list[Tensor] = []
    assert outlier_share(block, chunks, 3.0, store=lambda _, y: outputs.append(y)) == pytest.approx(expected)
    assert expected > 0
    torch.testing.assert_close(outputs[1], block(chunks[1]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (BlockOptions("wnda"), "wanda"),
        (BlockOptions(sparsity=1.5), "fraction"),
        (BlockOptions("sparsegpt", settings={"blok": 3}), "block"),
        (BlockOptions(propagate="both"), "propagate"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_change_nothing(block, chunks, options, says):
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(InputError, match=says):
        prune_block(block, chunks, options)
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())


def test_no_inputs_and_broken_weights(block, chunks):
    with pytest.raises(InputError, match="none"):
        prune_block(block, iter(()), BlockOptions())
    with torch.no_grad():
        block.q.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        prune_block(block, chunks, BlockOptions())
