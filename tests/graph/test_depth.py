"""Residual blocks and branches are found from values, whatever modules are called; what cannot go says why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph import blocks, trace, without
from prunus.graph.counting import size_of
from prunus.types import Block
from prunus.zoo import build

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """x + down(relu(up(x)))."""

    def __init__(self, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


def found(model: nn.Module, inputs: Tensor = X) -> dict[str, Block]:
    return {block.name: block for block in blocks(model.eval(), inputs)}


def names(model: nn.Module, unit: str, inputs: Tensor = X) -> list[str]:
    return [n for n, b in found(model, inputs).items() if b.unit == unit and not b.why_not]


def test_a_residual_block_is_found_with_its_parameters_and_multiply_adds():
    block = found(nn.Sequential(nn.Linear(6, 6), Residual(), nn.Linear(6, 3)))["1"]
    assert (block.unit, block.why_not, block.exact) == ("block", "", True)
    assert block.parameters == (6 * 8 + 8) + (8 * 6 + 6)
    assert block.macs == 6 * 8 + 8 * 6
    assert [(r.module, r.how) for r in block.removals] == [("1", "delete")]


def test_a_network_that_keeps_its_width_without_adding_its_input_is_no_block():
    assert found(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))) == {}


class Doubled(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Added(nn.Module):
    """The sum of two branches: without them nothing is left, so it is not the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("kind", [Doubled, Added])
def test_sums_that_are_not_residual_are_no_blocks(kind):
    assert found(nn.Sequential(kind())) == {}


class InPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        out = self.down(self.up(x).relu_())
        out += x
        return out


class Overwritten(Residual):
    """What is added is no longer the input, but its rectified values."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.up(x)))
        return y + x.clone().sub_(1.0)


def test_values_are_followed_through_operators_in_place():
    assert names(nn.Sequential(nn.Linear(6, 6), InPlace()), "block") == ["1"]
    assert found(nn.Sequential(nn.Linear(6, 6), Overwritten())) == {}


class Viewed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        y = self.down(F.relu(self.up(x)))
        return (flat + y.reshape(-1)).view(x.shape)


def test_an_input_is_known_again_behind_views():
    assert names(nn.Sequential(Viewed()), "block") == ["0"]


class Rectified(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def test_a_final_relu_needs_an_input_that_was_through_one():
    block = found(nn.Sequential(nn.Linear(6, 6), Rectified(), Rectified()))
    assert "relu" in block["1"].why_not
    assert not block["2"].why_not
    assert names(nn.Sequential(nn.ReLU(), Rectified()), "block") == ["1"]


class PostNorm(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


def test_a_block_that_normalises_its_sum_can_go_but_is_not_exact():
    assert found(nn.Sequential(PostNorm()))["0"].exact is False


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.ModuleList([Residual()]), nn.ModuleList([Residual()])

    def forward(self, x: Tensor) -> Tensor:
        return self.twice[0](self.twice[0](self.once[0](x)))


def test_a_module_that_runs_twice_stays():
    assert found(Twice())["twice.0"].why_not == "it runs 2 times in one pass"


def test_a_layer_that_all_share_stays_and_says_so():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Residual()])

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.layers[0](x)
            return x

    assert found(Shared())["layers.0"].why_not == "it runs 3 times in one pass"


class Leaking(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.hidden = F.relu(self.up(x))
        return x + self.down(self.hidden)


class Skipping(nn.Module):
    """A later layer reads a value inside the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Leaking(), Leaking()])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.layers[0].hidden) + x.sum()


def test_a_block_with_a_value_that_is_used_elsewhere_stays():
    block = found(Skipping())
    assert "used in head" in block["layers.0"].why_not
    assert not block["layers.1"].why_not


class Layer(nn.Module):
    """Two branches; the second is two side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)
        self.first, self.second = Residual(), Residual()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + (self.first.down(F.relu(self.first.up(x))) + self.second.up(x)[:, :6])


def test_branches_are_found_inside_a_block_with_several():
    model = nn.Sequential(Layer())
    assert names(model, "block") == ["0"]
    branches = [b for b in blocks(model.eval(), X) if b.unit == "branch"]
    assert {b.name: [(r.module, r.how) for r in b.removals] for b in branches} == {
        "0.mix": [("0.norm", "drop"), ("0.mix", "zero")],
        "0.first.up": [("0.first.up", "drop"), ("0.first.down", "zero")],
        "0.second.up": [("0.second.up", "zero")],
    }
    mix = next(b for b in branches if b.name == "0.mix")
    assert mix.parameters == 12 + 42
    assert mix.macs == 36


def test_stages_are_no_blocks_but_their_members_are():
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Residual() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    assert names(nn.Sequential(Stage(), Stage()), "block") == [f"{s}.layers.{i}" for s in range(2) for i in range(2)]


def test_a_block_that_is_a_plain_attribute_is_bypassed():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Linear(6, 6), Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(x))

    assert [(r.module, r.how) for r in found(Net())["block"].removals] == [("block", "bypass")]


def test_the_field_s_residual_networks():
    image = torch.randn(2, 3, 16, 16)
    assert names(build("resnet20"), "block", image) == [
        "layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2",
    ]  # fmt: skip
    assert found(build("resnet20"), image)["layer2.0"].why_not == "its output has another shape than its input"
    assert len(names(build("mobilenet_v2"), "block", image)) == 10


@pytest.mark.parametrize(("norm_first", "exact"), [(True, True), (False, False)])
def test_encoder_layers_and_their_halves(norm_first, exact):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    block = found(model, torch.randn(2, 5, 8))
    assert [n for n, b in block.items() if b.unit == "block"] == ["layers.0", "layers.1"]
    assert [n for n, b in block.items() if b.unit == "branch"] == [
        f"layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear1")
    ]
    assert block["layers.0"].exact is exact


def test_a_graph_without_modules_costs_what_is_left():
    model = nn.Sequential(nn.Linear(6, 6), Residual(), nn.Linear(6, 3))
    graph = trace(model, X)
    left = size_of(without(graph, ["1"]))
    assert left.parameters == 42 + 21
    assert left.macs == 36 + 18


def test_a_model_without_weights_is_enough():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 6), Residual())
    assert names(model, "block", torch.randn(2, 6, device="meta")) == ["1"]
