from __future__ import annotations

import copy
import dataclasses
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.criteria import score
from prunus.errors import InputError, UnknownNameError
from prunus.graph import trace
from prunus.statistics import ACCUMULATORS, collect

from ..hand_graphs import TwoLayers, two_layers_graph

GRAPH = two_layers_graph()
KEY = "conv in conv.weight[0]"
GATE = "conv in norm.weight[0]"


def batches_of(count: int, size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 2, 3, 3, generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(count)
    ]


def lively() -> TwoLayers:
    """A model whose norm is not the identity."""
    model = TwoLayers().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By plain backward on a copy."""
    model = copy.deepcopy(model).eval()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------------------- values


def test_streaming_equals_keeping_every_gradient():
    model, batches = lively(), batches_of(3, 4)
    statistics = collect(model, iter(batches), ACCUMULATORS, graph=GRAPH)
    assert (statistics.batches, statistics.examples) == (3, 12)
    every = [gradients(model, x, y) for x, y in batches]
    weight = model.conv.weight.detach()
    values = statistics.values
    g = torch.stack([one["conv.weight"] for one in every])
    torch.testing.assert_close(values["weight_gradient"]["conv.weight"], g.mean(0))
    torch.testing.assert_close(values["weight_gradient_square"]["conv.weight"], g.square().mean(0))
    torch.testing.assert_close(values["unit_taylor"][KEY], (g * weight).sum((2, 3, 4)).square().mean(0))
    read = torch.stack([one["head.weight"] for one in every]) * model.head.weight.detach()
    by_unit = read.reshape(3, 5, 4, 9).sum((1, 3)).square().mean(0)
    torch.testing.assert_close(values["unit_taylor"]["conv in head.weight[1]"], by_unit)


def test_the_gate_form_is_the_gradient_of_a_gate_after_the_norm():
    model, batches = lively(), batches_of(3, 4)
    collected = collect(model, batches, ["gate_taylor"], graph=GRAPH).values["gate_taylor"][GATE]
    expected = torch.zeros(4)
    for x, y in batches:
        z = torch.ones(4, requires_grad=True)
        hidden = model.norm(model.conv(x)) * z[:, None, None]
        F.cross_entropy(model.head(hidden.relu().flatten(1)), y).backward()
        assert z.grad is not None
        expected += z.grad.square() / 3
    torch.testing.assert_close(collected, expected)


def test_the_activation_form_is_the_mean_gradient_of_a_gate_per_example():
    model, (batch,) = lively(), batches_of(1, 6)
    collected = collect(model, [batch], ["activation_taylor"], graph=GRAPH).values["activation_taylor"][KEY]
    x, y = batch
    z = torch.ones(6, 4, requires_grad=True)
    hidden = model.norm(model.conv(x) * z[:, :, None, None])
    F.cross_entropy(model.head(hidden.relu().flatten(1)), y, reduction="sum").backward()
    assert z.grad is not None
    torch.testing.assert_close(collected, z.grad.abs().mean(0) / 9)


def test_the_joint_form_is_the_squared_change_of_a_linear_loss():
    model, ((x, _),) = lively(), batches_of(1, 4)
    coefficients = torch.randn(4, 4, 3, 3)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = copy.deepcopy(model.conv)
            self.conv.bias = None

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    first = First()
    (group,) = GRAPH.groups
    graph = dataclasses.replace(GRAPH, groups=(dataclasses.replace(group, places=group.places[:1]),))

    def loss(output: Tensor, _target: Tensor) -> Tensor:
        return (output * coefficients).sum()

    collected = collect(first, [(x, x)], ["unit_taylor"], loss=loss, graph=graph).values["unit_taylor"][KEY]
    with torch.no_grad():
        before = loss(first(x), x)
        for unit in range(4):
            without = copy.deepcopy(first)
            without.conv.weight[unit] = 0
            torch.testing.assert_close((before - loss(without(x), x)).square(), collected[unit], rtol=1e-3, atol=1e-5)


def test_the_order_of_batches_does_not_matter():
    model, batches = lively(), batches_of(4, 3)
    forward = collect(model, batches, ACCUMULATORS, graph=GRAPH).values
    backward = collect(model, batches[::-1], ACCUMULATORS, graph=GRAPH).values
    for need, by_key in forward.items():
        for key, value in by_key.items():
            torch.testing.assert_close(value, backward[need][key])


def test_means_over_examples_do_not_depend_on_how_they_are_batched():
    model, ((x, y),) = lively(), batches_of(1, 12)
    needs = ["weight_gradient", "activation_taylor", "activation_taylor_abs"]
    whole = collect(model, [(x, y)], needs, graph=GRAPH).values
    parts = collect(model, zip(x.split([2, 3, 7]), y.split([2, 3, 7])), needs, graph=GRAPH).values
    for need in needs:
        for key, value in whole[need].items():
            torch.testing.assert_close(value, parts[need][key])


def test_an_activation_in_place_does_not_change_what_is_seen():
    def network(inplace: bool) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardswish(inplace), nn.Flatten(), nn.Linear(4, 5)).eval()

    batches = batches_of(2, 4)
    both = []
    for inplace in (False, True):
        model = network(inplace)
        graph = trace(model, torch.randn(2, 2, 3, 3))
        both.append(collect(model, batches, ["activation_taylor"], graph=graph).values["activation_taylor"])
    assert both[0].keys() == both[1].keys() != set()
    for key, value in both[0].items():
        torch.testing.assert_close(value, both[1][key])


def test_every_criterion_scores_a_traced_network_from_what_was_collected():
    model = lively()
    graph = trace(model, torch.randn(2, 2, 3, 3))
    statistics = collect(model, batches_of(2, 4), ACCUMULATORS, graph=graph)
    for name in ("taylor_weight", "taylor_joint", "taylor_gate", "taylor_activation", "taylor_activation_abs"):
        values = score(graph, name, statistics, model=model).values
        assert [tuple(v.shape) for v in values.values()] == [(4,)]
        assert all((v > 0).all() for v in values.values())
    by_hand = statistics.values["weight_gradient_square"]["conv.weight"] * model.conv.weight.detach().square()
    torch.testing.assert_close(
        score(graph, "taylor_weight", statistics, model=model).values["conv"], by_hand.sum((1, 2, 3))
    )


def test_linear_layers_over_sequences_and_transposed_convolutions_are_seen_at_their_channels():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 6, 2, stride=2)
            self.mix = nn.Linear(36, 7)
            self.head = nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.up(x).flatten(2)).mean(1))

    model = Mixed().eval()
    graph = trace(model, torch.randn(2, 2, 3, 3))
    collected = collect(model, batches_of(2, 4), ["activation_taylor"], graph=graph).values["activation_taylor"]
    assert {key: len(value) for key, value in collected.items()} == {
        "up in up.weight[1]": 6,
        "mix in mix.weight[0]": 7,
    }
    x, y = batches_of(1, 4)[0]
    z = torch.ones(4, 7, requires_grad=True)
    hidden = model.mix(model.up(x).flatten(2)) * z[:, None]
    F.cross_entropy(model.head(hidden.mean(1)), y, reduction="sum").backward()
    assert z.grad is not None
    one = collect(model, [(x, y)], ["activation_taylor"], graph=graph).values["activation_taylor"]
    torch.testing.assert_close(one["mix in mix.weight[0]"], z.grad.abs().mean(0) / 6)


def test_a_model_with_its_own_loss_takes_its_batches_whole():
    @dataclasses.dataclass
    class Output:
        loss: Tensor

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lively()

        def forward(self, x: Tensor, labels: Tensor) -> Output:
            return Output(F.cross_entropy(self.inner(x), labels))

    model, ((x, y),) = WithLoss(), batches_of(1, 4)
    collected = collect(model, [{"x": x, "labels": y}], ["weight_gradient"]).values["weight_gradient"]
    torch.testing.assert_close(collected["inner.conv.weight"], gradients(model.inner, x, y)["conv.weight"])


def test_frozen_parameters_have_statistics_too_and_unused_ones_have_zeros():
    model = lively().requires_grad_(False)
    model.spare = nn.Linear(2, 2)
    ((x, y),) = batches_of(1, 4)
    with torch.no_grad():
        collected = collect(model, [(x, y)], ["weight_gradient"]).values["weight_gradient"]
    assert collected["conv.weight"].abs().sum() > 0
    assert collected["spare.weight"].abs().sum() == 0
    assert not any(p.requires_grad for name, p in model.named_parameters() if "spare" not in name)


# ------------------------------------------------------------------------------------------------------- left as it was


class Stateful(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "objects": {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]},
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_exactly_as_it_was(training, fails):
    model = Stateful()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(5)
    before = snapshot(model)

    def batches():
        yield from batches_of(2, 4)
        if fails:
            raise OSError("the data ended badly")

    try:
        collect(model, batches(), ACCUMULATORS, graph=GRAPH, training=training)
        assert not fails
    except OSError:
        assert fails
    after = snapshot(model)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_dropout_in_training_mode_follows_the_seed():
    def run(seed: int) -> Tensor:
        torch.manual_seed(5)
        model = Stateful()
        torch.rand(seed)
        found = collect(model, batches_of(2, 4), ["weight_gradient"], training=True, seed=seed)
        return found.values["weight_gradient"]["conv.weight"]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_no_batch_is_held_on_to():
    seen: list[weakref.ref] = []

    def batches():
        for x, y in batches_of(5, 4):
            x = x.clone()
            seen.append(weakref.ref(x))
            assert all(old() is None for old in seen[:-2]), "only the batch before this one may still be referred to"
            yield x, y
            del x

    collect(lively(), batches(), ACCUMULATORS, graph=GRAPH)
    assert len(seen) == 5


def test_another_device_gets_a_copy():
    model = lively()
    statistics = collect(model, batches_of(1, 2), ["weight_gradient"], device="cpu")
    assert statistics.values["weight_gradient"]["conv.weight"].device.type == "cpu"
    assert model.conv.weight.device.type == "cpu"


# ----------------------------------------------------------------------------------------------------------- arguments


def test_only_so_many_batches_are_read():
    statistics = collect(lively(), batches_of(5, 3), ["weight_gradient"], max_batches=2)
    assert (statistics.batches, statistics.examples) == (2, 6)


def test_needs_of_criteria_without_data_collect_nothing():
    assert collect(lively(), [], {"weight", "generator"}).values == {}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"needs": ["hessian"]}, UnknownNameError, "unknown need 'hessian'"),
        ({"needs": "unit_taylor"}, InputError, "graph=prunus"),
        ({"max_batches": 0}, InputError, "max_batches=0"),
        ({"batches": []}, InputError, "there are none"),
        ({"batches": [torch.ones(2, 2, 3, 3)]}, InputError, "batch 0 is a Tensor"),
        ({"batches": [(torch.ones(2, 2, 3, 3), torch.ones(2, 5))]}, InputError, "loss: none was given"),
        ({"loss": lambda output, target: output}, InputError, r"one number.*shape \(3, 5\)"),
        ({"loss": lambda output, target: 3.0}, InputError, "got float"),
        ({"loss": lambda output, target: output.detach().sum()}, InputError, "depends on the parameters"),
        ({"loss": lambda output, target: output.sum() * float("nan")}, InputError, "loss of batch 0 is nan"),
        ({"loss": lambda output, target: (output * 0).sum().sqrt()}, InputError, "gradient of 'conv.weight' is NaN"),
    ],
)
def test_bad_input_says_what_would_work(arguments, error, says):
    given = {"needs": ["weight_gradient"], "batches": batches_of(1, 3)} | arguments
    with pytest.raises(error, match=says):
        collect(lively(), **given)
