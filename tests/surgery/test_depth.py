"""Leaving blocks out equals zeroing their branches; names, indices and counts follow; nothing is left half done."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, StoredFileError, SurgeryError, UnknownNameError
from prunus.graph import trace
from prunus.graph.counting import size_of
from prunus.surgery import Bypass
from prunus.surgery.depth import check_depth, renaming, shallower
from prunus.types import Removal
from prunus.zoo import build

from .helpers import assert_unchanged, lively, state

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Two branches, x + mix(norm(x)) and x + down(relu(up(x))); it knows its position."""

    def __init__(self, layer_idx: int = 0) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.num_layers = layers
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(Layer(i) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index in range(self.num_layers):
            x = self.layers[index](x)
        return self.head(x)


@pytest.fixture
def model() -> Stack:
    return lively(Stack()).eval()


def zeroed(model: nn.Module, *linears: str) -> nn.Module:
    """A copy in float64 in which these last layers of branches give zeros."""
    copied = copy.deepcopy(model).double()
    for name in linears:
        for parameter in copied.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    return copied


def assert_equal_outputs(cut: nn.Module, reference: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        got, expected = copy.deepcopy(cut).double()(inputs.double()), reference(inputs.double())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def assert_counted(result: prunus.Pruned, inputs: Tensor) -> None:
    assert result.plan.after.parameters == sum(p.numel() for p in result.model.parameters())
    assert result.plan.after == size_of(trace(result.model, inputs))


# ---------------------------------------------------------------------------------------------------- what comes out


def test_leaving_blocks_out_equals_zeroing_their_branches(model):
    before = state(model)
    result = prunus.prune(model, X, depth=["layers.1", "layers.2"])
    ends = [f"layers.{i}.{name}" for i in (1, 2) for name in ("mix", "down")]
    assert_equal_outputs(result.model, zeroed(model, *ends), X)
    assert_counted(result, X)
    assert result.report.depth == ("layers.1", "layers.2")
    assert result.plan.before == size_of(trace(model, X))
    assert_unchanged(model, before)


def test_names_indices_and_counts_follow(model):
    last = model.layers[3].mix.weight
    small = prunus.prune(model, X, depth=["layers.1"]).model
    assert [layer.layer_idx for layer in small.layers] == [0, 1, 2]
    assert small.num_layers == len(small.layers) == 3
    assert torch.equal(small.layers[2].mix.weight, last)
    rename = renaming(model, [Removal("layers.1", "delete")])
    assert [rename(f"layers.{i}.mix.weight") for i in range(4)] == [
        "layers.0.mix.weight", None, "layers.1.mix.weight", "layers.2.mix.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(("branch", "end", "gone"), [("mix", "mix", 12 + 42), ("up", "down", 56 + 54)])
def test_a_branch_goes_with_what_it_alone_needs(model, branch, end, gone):
    result = prunus.prune(model, X, depth=[f"layers.2.{branch}"])
    assert_equal_outputs(result.model, zeroed(model, f"layers.2.{end}"), X)
    assert_counted(result, X)
    assert result.plan.before.parameters - result.plan.after.parameters == gone
    assert isinstance(result.model.layers[2].get_submodule(end), Bypass)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_networks_for_images(name):
    model = lively(build(name)).eval()
    image = torch.randn(2, 3, 16, 16)
    block = next(b for b in prunus.blocks(model, image) if not b.why_not)
    result = prunus.prune(model, image, depth=[block.name])
    norms = [n for n, m in model.named_modules() if n.startswith(block.name) and isinstance(m, nn.BatchNorm2d)]
    assert_equal_outputs(result.model, zeroed(model, norms[-1]), image)
    assert_counted(result, image)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("branch", "end"), [("self_attn", "self_attn.out_proj"), ("linear1", "linear2")])
def test_halves_of_torch_s_encoder_layers_also_without_gradients(norm_first, branch, end):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = lively(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    x = torch.randn(2, 5, 8)
    small = prunus.prune(model, x, depth=[f"layers.0.{branch}"]).model
    assert_equal_outputs(small, zeroed(model, f"layers.0.{end}"), x)


def test_depth_and_width_meet_a_budget_of_the_whole_model(model):
    whole = size_of(trace(model, X))
    result = prunus.prune(model, X, depth=0.5, target={"macs": 0.4})
    assert len(result.model.layers) == 2
    assert 0.3 * whole.macs < result.plan.after.macs <= 0.4 * whole.macs
    assert_counted(result, X)


def test_quality_and_latency_are_those_of_the_whole_model(model):
    drop = prunus.prune(model, X, depth=1, target={"max_drop": 3.0}, quality=lambda m: float(len(m.layers)))
    assert "of 4.0000" in drop.report.notes[0]
    timed = prunus.prune(model, X, depth=2, target={"latency": 0.5}, seconds=lambda m: len(m.layers) * 1e-3)
    assert len(timed.model.layers) == 2
    assert "of 4 ms" in timed.report.notes[0]


def test_the_result_is_an_ordinary_module(model, tmp_path):
    small = prunus.prune(model, X, depth=["layers.0", "layers.2.mix"]).model
    expected = small(X)
    torch.testing.assert_close(torch.export.export(small, (X,)).module()(X), expected)
    torch.testing.assert_close(copy.deepcopy(small)(X), expected)
    optimiser = torch.optim.SGD(small.parameters(), 0.01)
    losses = []
    for _ in range(5):
        loss = small(X).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------------------- plans and storage


def test_a_plan_with_depth_is_stored_and_replayed(model, tmp_path):
    result = prunus.prune(model, X, depth=["layers.1", "layers.3.up"], ratio=0.5)
    plan = prunus.from_json(prunus.to_json(result.plan))
    assert plan == result.plan
    assert [r.module for r in plan.depth] == ["layers.1", "layers.3.up", "layers.3.down"]
    torch.testing.assert_close(prunus.apply(model, plan)(X), result.model(X))
    prunus.save(result, tmp_path / "small")
    torch.testing.assert_close(prunus.load(tmp_path / "small", Stack())(X), result.model(X))


def test_a_plan_without_depth_keeps_its_format(model):
    plain, deep = prunus.prune(model, X, ratio=0.5).plan, prunus.prune(model, X, depth=1).plan
    assert '"prunus.plan/1"' in prunus.to_json(plain)
    assert '"depth"' not in prunus.to_json(plain)
    assert '"prunus.plan/2"' in prunus.to_json(deep)
    with pytest.raises(StoredFileError, match="how is 'explode'"):
        prunus.from_json(prunus.to_json(deep).replace('"delete"', '"explode"'))


def test_in_place_changes_the_model_itself(model):
    copied = prunus.prune(model, X, depth=["layers.1"], ratio=0.5).model
    same = prunus.prune(model, X, depth=["layers.1"], ratio=0.5, inplace=True)
    assert same.model is model
    torch.testing.assert_close(model(X), copied(X))
    assert len(same.plans) == 1


def test_a_failure_in_the_middle_of_the_commit_leaves_everything_as_it_was(model, monkeypatch):
    plan = prunus.prune(model, X, depth=["layers.1"], ratio=0.5).plan
    before, names = state(model), [n for n, _ in model.named_modules()]

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("prunus.surgery.cut._commit", fail)
    with pytest.raises(RuntimeError, match="no"):
        prunus.apply(model, plan, inplace=True)
    assert [n for n, _ in model.named_modules()] == names
    assert_unchanged(model, before)


# --------------------------------------------------------------------------------------------------- what is refused


class Zipped(Stack):
    """Each layer has a scale of its own beside it: deleting a layer would shift them."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [1.0, 2.0, 3.0, 4.0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, scale in zip(self.layers, self.scales):
            x = layer(x) * scale
        return self.head(x)


def test_where_deleting_changes_more_the_block_is_bypassed():
    model = lively(Zipped()).eval()
    result = prunus.prune(model, X, depth=["layers.1"])
    assert [r.how for r in result.plan.depth] == ["bypass"]
    assert isinstance(result.model.layers[1], Bypass)
    assert_equal_outputs(result.model, zeroed(model, "layers.1.mix", "layers.1.down"), X)


class Inspecting(Stack):
    """The code around needs the first layer's weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layers[0].up.weight.detach().sum()


def test_what_breaks_the_model_is_refused_and_the_next_one_goes():
    model = lively(Inspecting()).eval()
    with pytest.raises(SurgeryError, match=r"layers\.0 cannot be left out"):
        prunus.prune(model, X, depth=["layers.0"])
    order = {f"layers.{i}": float(i) for i in range(4)}
    result = prunus.prune(model, X, depth=2, depth_criterion=lambda block, _: order[block.name])
    assert result.report.depth == ("layers.1", "layers.2")
    assert result.refused[0].what == "block 'layers.0'"


def test_a_wrong_claim_is_found(model):
    removals = (Removal("layers.1", "delete"),)
    wrong = shallower(model, (Removal("layers.2", "delete"),))
    with pytest.raises(SurgeryError, match="differs"):
        check_depth(model, wrong, removals, X)


@pytest.mark.parametrize(
    ("depth", "error", "says"),
    [
        (1.0, InputError, "lies in"),
        (-1, InputError, "negative"),
        (5, InputError, "4 blocks"),
        ("layers.1", InputError, "list of names"),
        ([], InputError, "names of blocks"),
        (["layer.1"], UnknownNameError, "did you mean"),
    ],
)
def test_wrong_arguments_are_named(model, depth, error, says):
    before = state(model)
    with pytest.raises(error, match=says):
        prunus.prune(model, X, depth=depth)
    assert_unchanged(model, before)


def test_what_keep_protects_stays(model):
    with pytest.raises(InputError, match="protects"):
        prunus.prune(model, X, depth=["layers.1"], keep=["layers.1.up"])
    result = prunus.prune(model, X, depth=2, ratio=0.5, keep=["layers.3"], depth_criterion=lambda *_: 0.0)
    assert result.report.depth == ("layers.0", "layers.1")
    assert [layer.up.out_features for layer in result.model.layers] == [4, 8]


# ------------------------------------------------------------------------------------------------------- which ones go


def test_the_least_important_blocks_go(model):
    with torch.no_grad():
        for parameter in model.layers[2].parameters():
            parameter *= 0.01
    data = [(X, torch.zeros(3, dtype=torch.long))]
    assert prunus.prune(model, X, depth=1).report.depth == ("layers.2",)
    assert prunus.prune(model, X, depth=0.25, data=data).report.depth == ("layers.2",)
    assert prunus.prune(model, X, depth=1, depth_criterion="similarity", data=iter(data)).report.depth == ("layers.2",)
    largest = prunus.prune(model, X, depth=1, depth_criterion=lambda block, _: -float(block.name[-1]))
    assert largest.report.depth == ("layers.3",)
    halves = prunus.prune(model, X, depth=2, depth_unit="branch")
    assert set(halves.report.depth) == {"layers.2.mix", "layers.2.up"}


def test_scores_that_cannot_be_had_are_named(model):
    with pytest.raises(InputError, match="give data="):
        prunus.prune(model, X, depth=1, depth_criterion="similarity")
    with pytest.raises(UnknownNameError, match="magnitude"):
        prunus.prune(model, X, depth=1, depth_criterion="magnitud")
    with pytest.raises(UnknownNameError, match="branch"):
        prunus.prune(model, X, depth=1, depth_unit="layer")
