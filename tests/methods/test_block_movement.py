"""Block movement: blocks of one entry are plain movement, and units that become empty go without a change."""

from __future__ import annotations

import copy

import pytest
import torch

from prunus import methods
from prunus.data import Split
from prunus.errors import InputError
from prunus.graph import trace
from prunus.masks import find_sites
from prunus.methods.block_movement import _put
from prunus.methods.inner_axes import dead_units, inner_dims, readers_of
from prunus.methods.scores import Selecting

from .encoders import accuracy, at, bert, example, task, trained


def scored(mode: str, block: tuple[int, int] = (4, 4)):
    model = bert()
    graph = trace(model, example())
    dims = inner_dims(graph)
    sites = [site for site in find_sites(model)[0] if ".layer." in site.name]
    return model, _put(model, sites, dims, mode, block, 1.0)


def test_blocks_of_one_entry_are_unstructured_soft_movement():
    given = {"score_lr": 0.1, "penalty": 50.0}
    training = at(epochs=1)
    plain = methods.run("movement_pruning", task(trained(), training=training), mode="soft", **given)
    blocks = methods.run("block_movement", task(trained(), training=training), mode="block", block=(1, 1), **given)
    assert blocks.plan is None
    for name, value in plain.model.state_dict().items():
        assert torch.equal(blocks.model.state_dict()[name], value), name


def test_neurons_share_one_score_for_row_and_column():
    _, masks = scored("hybrid")
    layer = "model.bert.encoder.layer.0"
    first, second = masks[f"{layer}.intermediate.dense.weight"], masks[f"{layer}.output.dense.weight"]
    assert first.scores is second.scores
    assert first.scores.raw.numel() == 24
    assert first.scores.entries == 32
    assert masks[f"{layer}.attention.self.query.weight"].scores.raw.numel() == 16
    first.scores.kept[5] = False
    assert not first.spread(first.scores.kept).expand(24, 16)[5].any()
    assert not second.spread(second.scores.kept).expand(16, 24)[:, 5].any()


def test_struct_has_lines_in_attention_too():
    _, masks = scored("struct")
    layer = "model.bert.encoder.layer.0.attention"
    value, out = masks[f"{layer}.self.value.weight"], masks[f"{layer}.output.dense.weight"]
    query, key = masks[f"{layer}.self.query.weight"], masks[f"{layer}.self.key.weight"]
    assert value.scores is out.scores
    assert query.scores is key.scores
    assert value.scores is not query.scores
    assert (value.block, out.block) == ((1, 16), (16, 1))


def test_what_nothing_reads_is_removed_without_a_change():
    model = bert()
    graph = trace(model, example())
    readers = readers_of(model, example(), graph)
    with torch.no_grad():
        for name, reader in readers.items():
            weight = model.get_submodule(reader.module).weight
            weight[:, reader.positions[1]] = 0
            if reader.kind == "neuron" and ".layer.0" in name:
                weight.zero_()
    gone = dead_units(model, graph)
    assert {name: int(dead.sum()) for name, dead in gone.items() if name in readers} == {
        name: 23 if r.kind == "neuron" and ".layer.0" in name else 1 for name, r in readers.items()
    }


@pytest.mark.parametrize(
    "mode", ["hybrid", *(pytest.param(m, marks=pytest.mark.slow) for m in ("struct", "hybrid_filled"))]
)
def test_the_smaller_network_computes_what_the_masked_one_does_and_keeps_the_task(mode: str):
    model = trained()
    training = at(epochs=8, lr=2e-3)
    given = {"mode": mode, "block": (4, 4), "score_lr": 0.05}
    outcome = methods.run("block_movement", task(model, amount=0.6, training=training), **given)
    assert outcome.plan is not None  # cut parts are verified to equal masked ones
    assert outcome.plan.after.parameters < outcome.plan.before.parameters
    record = next(r for r in outcome.history if "density" in r)
    assert record["density"] == pytest.approx(0.4, abs=0.02)
    assert record["removed"]
    if mode == "hybrid_filled":
        assert not outcome.masks
    else:
        for name, mask in outcome.masks.items():
            assert torch.equal(mask, outcome.model.get_parameter(name) != 0)
    assert accuracy(outcome.model) > 0.75


def test_the_same_units_go_when_the_masked_network_is_cut():
    """With zeros written but nothing removed, the outputs are those of the cut network."""
    model, masks = scored("hybrid")
    torch.manual_seed(1)
    scores = list({id(m.scores): m.scores for m in masks.values()}.values())
    for one in scores:
        one.raw.data.normal_()
    Selecting(0.3, scope="global").close(scores, 0.7)
    x = example()
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
    from prunus.methods.scores import take_off
    from prunus.methods.steps import without_units

    take_off(model, masks)
    graph = trace(model, x)
    smaller, plan = without_units(task(model), model, dead_units(model, graph), graph)
    assert plan is not None
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), expected)


def test_wrong_options_are_named():
    for options, word in (({"mode": "square"}, "mode"), ({"block": (0, 3)}, "block"), ({"fill": 1.5}, "fill")):
        with pytest.raises(InputError, match=word):
            methods.run("block_movement", task(bert()), **options)


class Residual(torch.nn.Conv2d):
    """A convolution around which the input goes too."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def test_blocks_of_convolutions_are_refused():
    model = torch.nn.Sequential(*(Residual(1, 1, 3, padding=1) for _ in range(2)), torch.nn.Flatten())
    x = torch.randn(4, 1, 4, 4)
    data = Split(x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match="no matrices within residual blocks"):
        methods.run("block_movement", methods.Task(model, x, data, training=at(epochs=1)))
