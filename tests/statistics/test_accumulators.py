from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.criteria import NEEDS
from prunus.errors import InputError
from prunus.statistics import ACCUMULATORS, INPUT_ACCUMULATORS, MAP_ACCUMULATORS, NEED_GRAPH
from prunus.statistics.accumulators import ActivationTaylor, Batch, Channel, ParameterMean, UnitTaylor
from prunus.types import Place, Product, Units

A = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
G = torch.tensor([[0.5, -0.25], [0.1, 0.4]])
ONE = Units("g", 1)


@pytest.mark.parametrize(("abs_inside", "expected"), [(False, 0.025), (True, 0.425)])
def test_activation_form_of_the_worked_example(abs_inside, expected):
    accumulator = ActivationTaylor([Channel("k", "g", "conv", -3, ONE)], abs_inside)
    accumulator.add(Batch(1, {}, {}, {"conv": [(A[None, None], G[None, None])]}))
    assert accumulator.result()["k"].tolist() == pytest.approx([expected])


def test_joint_and_sum_of_squares_forms_of_the_worked_example():
    weight, gradient = A.reshape(1, 4), G.reshape(1, 4)
    joint = UnitTaylor({"k": ("g", (Place("w", 0, ONE, "out"),))})
    squares = ParameterMean(["w"], torch.square, per_example=False)
    for accumulator in (joint, squares):
        accumulator.add(Batch(1, {"w": weight}, {"w": gradient}, {}))
    assert joint.result()["k"].tolist() == pytest.approx([0.01])
    assert (squares.result()["w"] * weight.square()).sum().item() == pytest.approx(0.75)


def test_a_unit_of_several_channels_has_one_gate():
    heads = Product((Units("h", 2), Units("d", 3)))
    output, gradient = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    accumulator = ActivationTaylor([Channel("k", "h", "m", -1, heads), Channel("d", "d", "m", -1, heads)], False)
    accumulator.add(Batch(4, {}, {}, {"m": [(output, gradient)]}))
    product = (4 * output * gradient).reshape(4, 5, 2, 3)
    torch.testing.assert_close(accumulator.result()["k"], product.mean((1, 3)).abs().mean(0))
    torch.testing.assert_close(accumulator.result()["d"], product.mean((1, 2)).abs().mean(0))


def test_calls_of_a_reused_layer_share_the_gate():
    first, second = (
        (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)),
        (torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)),
    )
    accumulator = ActivationTaylor([Channel("k", "g", "m", -3, Units("g", 3))], False)
    accumulator.add(Batch(2, {}, {}, {"m": [first, second]}))
    means = [2 * (a * g).mean((2, 3)) for a, g in (first, second)]
    torch.testing.assert_close(accumulator.result()["k"], (means[0] + means[1]).abs().mean(0))


def test_an_output_that_the_graph_does_not_know_is_named():
    accumulator = ActivationTaylor([Channel("k", "g", "layer3", -3, Units("g", 3))], False)
    with pytest.raises(InputError, match=r"'layer3' has shape \(2, 5, 4, 4\).*3 channels"):
        accumulator.add(Batch(2, {}, {}, {"layer3": [(torch.ones(2, 5, 4, 4), torch.ones(2, 5, 4, 4))]}))


def test_every_need_of_the_criteria_can_be_collected_and_nothing_else():
    collected = {*ACCUMULATORS, *MAP_ACCUMULATORS, *INPUT_ACCUMULATORS} - {"patch_moment"}  # for repairs, no criterion
    assert {name for name, need in NEEDS.items() if need.data and not need.given} == collected
    assert {name for name in ACCUMULATORS if NEEDS[name].per_unit} == NEED_GRAPH


def test_half_precision_gradients_are_squared_in_single_precision():
    accumulator = ParameterMean(["w"], torch.square, per_example=False)
    accumulator.add(Batch(1, {}, {"w": torch.full((2,), 1e-4, dtype=torch.float16)}, {}))
    torch.testing.assert_close(accumulator.result()["w"], torch.full((2,), 1e-8), rtol=1e-2, atol=0)


def test_means_weigh_batches_by_examples_only_where_that_is_meant():
    by_example = ParameterMean(["w"], lambda g: g, per_example=True)
    by_batch = ParameterMean(["w"], lambda g: g, per_example=False)
    for accumulator in (by_example, by_batch):
        accumulator.add(Batch(3, {}, {"w": torch.ones(1)}, {}))
        accumulator.add(Batch(1, {}, {"w": torch.zeros(1)}, {}))
    assert by_example.result()["w"].item() == 0.75
    assert by_batch.result()["w"].item() == 0.5


def test_modules_are_only_those_whose_outputs_are_units():
    from ..hand_graphs import TwoLayers, two_layers_graph

    model: nn.Module = TwoLayers()
    accumulator = ACCUMULATORS["activation_taylor"](model, two_layers_graph())
    assert accumulator.modules == {"conv"}
