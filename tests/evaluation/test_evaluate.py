"""The entry point: names, checks before anything runs, and a model left as it was."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from prunus import data, zoo
from prunus.errors import InputError, UnknownNameError
from prunus.evaluation import MEASURES, Context, Measure, accuracy, calibration, evaluate, fairness, size, uncertainty
from prunus.types import Measurement

from .cases import random_case, spread_of, value_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).train()


DATA = [(torch.randn(16, 4, generator=torch.Generator().manual_seed(i)), torch.arange(16) % 3) for i in range(2)]

# Attacks and corruptions need images, ood_detection foreign data; they have their own tests.
FILES = (accuracy, calibration, uncertainty, fairness, size)
NAMES = [name for file in FILES for name in file.MEASURES if name != "ood_detection"]


def snapshot(model: nn.Module) -> dict:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "ids": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for key in ("modes", "flags", "ids", "hooks"):
        assert before[key] == after[key], key
    torch.testing.assert_close(before["state"], after["state"], rtol=0, atol=0)
    assert torch.equal(before["random"], after["random"])
    for old, new in zip(before["grads"], after["grads"]):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)


def test_every_measure_of_predictions_and_size_leaves_both_models_as_they_were():
    model, reference = network(), network()
    model[0].bias.requires_grad_(False)
    model(DATA[0][0]).sum().backward()
    before = snapshot(model), snapshot(reference)
    options = {"mc_dropout": {"passes": 3}}
    found = evaluate(model, DATA, NAMES, reference=reference, example_inputs=DATA[0][0], options=options)
    assert_same(before[0], snapshot(model))
    assert_same(before[1], snapshot(reference))
    assert list(found) == NAMES
    for name, measurement in found.items():
        assert measurement.name == name
        assert measurement.unit
        assert measurement.how
        json.dumps(asdict(measurement), allow_nan=False)


def test_an_error_in_a_measure_leaves_the_model_as_it_was():
    model = network()

    def breaks(context: Context) -> float:
        context.model.train()
        context.model(DATA[0][0]).sum().backward()
        context.model.requires_grad_(False)
        raise RuntimeError("broken")

    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, DATA, breaks)
    assert_same(before, snapshot(model))


def test_a_result_does_not_depend_on_the_measures_beside_it():
    model, data, _, _ = random_case()
    together = evaluate(model, data, ["macro_f1", "ece", "accuracy"], seed=5)
    for name, measurement in together.items():
        assert evaluate(model, data, name, seed=5)[name] == measurement
    assert evaluate(model, data, "macro_f1", seed=6)["macro_f1"].spread != together["macro_f1"].spread


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 400), st.integers(0, 99))
def test_a_result_does_not_depend_on_how_samples_are_batched_or_ordered(size, seed):
    model, _, _, targets = random_case()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    batches = list(zip(order.split(size), targets[order].split(size)))
    names = ["accuracy", "balanced_accuracy", "nll", "brier", "ece", "adaptive_ece", "temperature"]
    expected = evaluate(model, [(torch.arange(400), targets)], names)
    for name, measurement in evaluate(model, batches, names).items():
        assert value_of(measurement) == pytest.approx(value_of(expected[name]), rel=1e-9), name


def test_the_model_runs_once_for_all_measures_of_predictions():
    model, data, _, _ = random_case()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    evaluate(model, data, ["accuracy", "top5", "per_class_accuracy", "nll", "brier", "ece", "mce", "temperature"])
    assert len(calls) == len(data)


def test_an_iterator_serves_several_measures_and_models():
    model, data, _, _ = random_case()
    found = evaluate(model, iter(data), ["accuracy", "agreement"], reference=model)
    assert found["agreement"].value == 1.0
    assert found["accuracy"] == evaluate(model, data, "accuracy")["accuracy"]


def test_measures_may_be_callables():
    model, data, _, _ = random_case()

    def wrong(context: Context) -> int:
        assert not context.model.training
        return int((~context.predictions().correct).sum())

    def own(context: Context) -> Measurement:
        return Measurement("own", 1.0, "m", "by hand")

    found = evaluate(model, data, [wrong, own, "accuracy", Measure(own, unit="m")][:3])
    assert found["wrong"] == Measurement("wrong", 400 - found["accuracy"].details["correct"], "", "given callable")
    assert found["own"].unit == "m"
    with pytest.raises(InputError, match=r"<lambda> returned str"):
        evaluate(model, data, lambda context: "high")  # type: ignore[arg-type]


def test_a_measure_object_is_named_after_its_function():
    def halves(context: Context) -> Measurement:
        return Measurement("halves", context.options["by"] / 2, "1", "")

    found = evaluate(nn.ReLU(), None, Measure(halves, options={"by": 4}), options={"halves": {"by": 6}})
    assert found["halves"].value == 3


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"measures": "acuracy"}, UnknownNameError, "did you mean 'accuracy'"),
        ({"measures": ["accuracy", "accuracy"]}, InputError, "asked for twice"),
        ({"measures": [3]}, InputError, "got 3"),
        ({"measures": "accuracy", "data": None}, InputError, "'accuracy' needs data: pass data="),
        ({"measures": "agreement"}, InputError, "'agreement' needs reference: pass reference="),
        ({"measures": "macs"}, InputError, "'macs' needs example_inputs: pass example_inputs="),
        ({"measures": "ece", "options": {"ece": {"bin": 3}}}, UnknownNameError, "did you mean 'bins'"),
        ({"measures": "ece", "options": {"mce": {"bins": 3}}}, InputError, "'mce' is not among the measures"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"model": "resnet56"}, InputError, "model: got str"),
        ({"reference": "resnet56"}, InputError, "reference: got str"),
        ({"data": [(torch.randn(2, 4), torch.tensor([0, 7]))]}, InputError, r"targets must lie in \[0, 3\)"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments, error, said):
    model = network()
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    given = {"model": model, "data": DATA, "measures": "accuracy", **arguments}
    with pytest.raises(error, match=said):
        evaluate(**given)
    assert len(ran) <= (1 if "lie in" in said else 0)


def test_the_first_bad_measure_stops_all():
    model, ran = network(), []
    model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(InputError, match="reference"):
        evaluate(model, DATA, ["accuracy", "agreement"])
    assert not ran


def test_units_and_directions_in_the_table_are_those_of_the_measurements():
    found = evaluate(network(), DATA, NAMES, reference=network(), example_inputs=DATA[0][0])
    assert {name: m.unit for name, m in found.items()} == {name: MEASURES[name].unit for name in NAMES}
    assert all(measure.better in ("higher", "lower", "") for measure in MEASURES.values())


@pytest.mark.slow
def test_a_pretrained_network_on_real_images(data_root):
    """The published accuracy, over-confidence that a temperature mends, and the cost of pruning at random."""
    source = data.load("cifar10", root=data_root).normalised(*zoo.PRETRAINED["resnet20"].normalisation)
    model = zoo.load_pretrained("resnet20", data_root / zoo.PRETRAINED["resnet20"].file)
    damaged = copy.deepcopy(model)
    prune.random_unstructured(damaged.get_submodule("layer1.0.conv1"), "weight", 0.2)
    images = source.test.subset(2000)
    names = ["accuracy", "ece", "temperature"]
    dense = evaluate(model, images, names)
    pruned = evaluate(damaged, images, ["agreement", "accuracy_drop", "sparsity"], reference=model)
    spread = spread_of(dense["accuracy"])
    assert spread.low < zoo.PRETRAINED["resnet20"].accuracy < spread.high
    assert value_of(dense["temperature"]) > 1.5
    assert dense["temperature"].details["after"]["ece"] < value_of(dense["ece"]) / 2
    assert value_of(pruned["accuracy_drop"]) > 0
    assert 0.5 < value_of(pruned["agreement"]) < 1
    assert value_of(pruned["sparsity"]) > 0
