"""All that criteria need, from one call: collected in a pass or computed apart, against the functions themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus import statistics
from prunus.criteria import CRITERIA
from prunus.criteria.table import NEEDS
from prunus.errors import InputError, UnknownNameError
from prunus.statistics import COMPUTED_APART, PER_UNIT, PER_WEIGHT, gather, input_norms


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 2, 4, 4, generator=generator), torch.arange(5) % 3) for _ in range(3)]


def test_every_need_of_a_criterion_is_collected_or_computed():
    assert {*PER_UNIT, *PER_WEIGHT} == COMPUTED_APART == {name for name, need in NEEDS.items() if need.given}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_of_the_table_gets_what_it_needs(name):
    model = network()
    found = gather(model, batches(), CRITERIA[name].data_needs, graph=prunus.trace(model, batches()[0][0]))
    assert found.values.keys() == CRITERIA[name].data_needs
    assert (found.batches, found.examples) == ((3, 15) if CRITERIA[name].data_needs else (0, 0))


def test_what_is_computed_apart_is_what_its_function_says():
    model, data = network(), batches()
    graph = prunus.trace(model, data[0][0])
    found = gather(model, iter(data), ["relevance", "hessian_diagonal", "map_std"], graph=graph, seed=3).values
    apart = statistics.relevance(model, graph, data).values | statistics.hessian_diagonal(model, data, seed=3).values
    apart |= statistics.collect(model, data, ["map_std"], graph=graph).values
    assert found.keys() == apart.keys()
    for need, by_key in apart.items():
        assert all(torch.equal(value, found[need][key]) for key, value in by_key.items())


def test_only_so_many_batches_are_read():
    model, data = network(), batches()
    assert gather(model, data, ["input_norm"], max_batches=2).batches == 2
    short = gather(model, data, ["input_norm"], max_batches=2).values["input_norm"]["0.weight"]
    assert torch.equal(short, input_norms(model, data[:2]).values["input_norm"]["0.weight"])


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="graph="):
        gather(network(), batches(), ["relevance"])
    with pytest.raises(InputError, match="there are none"):
        gather(network(), [], ["input_norm"])
    with pytest.raises(UnknownNameError, match="need"):
        gather(network(), batches(), ["nothing"])
    with pytest.raises(InputError, match="prunus.statistics.gather"):
        prunus.collect(network(), batches(), ["input_norm"])


# --------------------------------------------------------------------------------------------------------- input norms


def test_norms_are_those_of_what_each_weight_reads():
    model, data = network(), batches()
    x = torch.cat([inputs for inputs, _ in data])
    found = input_norms(model, data).values["input_norm"]
    assert torch.allclose(found["0.weight"], x.square().sum((0, 2, 3)).sqrt())
    assert torch.allclose(found["4.weight"], model[:4](x).square().sum(0).sqrt(), atol=1e-5)
    assert found.keys() == {"0.weight", "4.weight"}


def test_masked_transposed_and_sequence_layers_are_read_and_grouped_ones_are_not():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.depthwise, self.out = (
                nn.ConvTranspose1d(3, 4, 2),
                nn.Conv1d(4, 4, 1, groups=4),
                nn.Linear(4, 2),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.depthwise(self.up(x)).transpose(1, 2))

    model = prunus.sparsify(Mixed(), sparsity=0.5, layers="out").model
    x = torch.randn(2, 3, 5)
    found = input_norms(model, [{"x": x}]).values["input_norm"]
    assert found.keys() == {"up.weight", "out.weight"}
    assert torch.allclose(found["up.weight"], x.square().sum((0, 2)).sqrt())
    read = model.depthwise(model.up(x))
    assert torch.allclose(found["out.weight"], read.square().sum((0, 2)).sqrt(), atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gather(model, batches(), ["input_norm", "gradient_flow", "hessian_diagonal", "synaptic_gradient"])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# -------------------------------------------------------------------------------------------------- criteria by name


@pytest.mark.parametrize("name", ["wanda", "grasp", "obd", "synflow"])
def test_sparsify_computes_what_a_criterion_needs(name):
    model, data = network(), batches()
    given = gather(model, data, CRITERIA[name].data_needs)
    one = prunus.sparsify(model, sparsity=0.5, criterion=name, data=data)
    other = prunus.sparsify(model, sparsity=0.5, criterion=name, statistics=given)
    assert all(torch.equal(mask, other.masks[key]) for key, mask in one.masks.items())


def test_wanda_keeps_what_is_read_by_large_inputs():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 1.0]]))
    model, x = nn.Sequential(layer), torch.tensor([[0.1, 5.0]])
    assert prunus.sparsify(model, sparsity=0.5, criterion="wanda", data=[x]).finalize()[0].weight.tolist() == [[0, 1]]


@pytest.mark.parametrize("name", ["nisp", "lrp", "curating"])
def test_prune_computes_what_a_criterion_needs(name):
    model, data = network(), batches()
    graph = prunus.trace(model, data[0][0])
    scores = prunus.score(graph, name, gather(model, data, CRITERIA[name].data_needs, graph=graph), model=model)
    result = prunus.prune(model, data[0][0], ratio=0.5, criterion=name, data=data)
    assert torch.equal(result.scores.values["0"], scores.values["0"])
    assert result.model[0].out_channels == 2


def test_a_loss_of_ones_own_reaches_them():
    model, data = network(), batches()
    graph = prunus.trace(model, data[0][0])

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 10 * F.cross_entropy(output, target)

    plain = gather(model, data, ["loss_change"], graph=graph).values["loss_change"]
    scaled = gather(model, data, ["loss_change"], graph=graph, loss=loss).values["loss_change"]
    assert all(torch.allclose(10 * value, scaled[key], atol=1e-5) for key, value in plain.items())
