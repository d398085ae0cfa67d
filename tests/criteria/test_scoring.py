from __future__ import annotations

import dataclasses

import pytest
import torch

from prunus.criteria import CRITERIA, Criterion, score
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.types import Statistics

from ..hand_graphs import TwoLayers, two_layers_graph

GRAPH = two_layers_graph()


def test_the_default_is_the_norm_of_the_filters():
    model = TwoLayers()
    scores = score(GRAPH, "l2_norm", model=model)
    assert scores.criterion == "l2_norm"
    torch.testing.assert_close(scores.values["conv"], model.conv.weight.detach().reshape(4, -1).norm(dim=1))


def test_a_models_tensors_and_the_model_give_the_same_scores():
    model = TwoLayers()
    from_tensors = score(GRAPH, "l1_norm", tensors=model.state_dict())
    assert torch.equal(from_tensors.values["conv"], score(GRAPH, "l1_norm", model=model).values["conv"])


@pytest.mark.parametrize(
    ("reduction", "combine"),
    [
        ("mean", lambda a, b: (a + b) / 2),
        ("sum", lambda a, b: a + b),
        ("max", torch.maximum),
        ("first", lambda a, b: a),
    ],
)
def test_the_norm_over_a_group_also_reads_what_consumes_the_unit(reduction, combine):
    model = TwoLayers()
    scores = score(GRAPH, "l1_norm", model=model, places=("out", "in"), reduction=reduction)
    out = model.conv.weight.detach().abs().sum((1, 2, 3))
    read = model.head.weight.detach().reshape(5, 4, 9).abs().sum((0, 2))
    torch.testing.assert_close(scores.values["conv"], combine(out, read))


def test_batchnorm_scale_reads_the_norm():
    model = TwoLayers()
    model.norm.weight.data = torch.tensor([0.1, -0.4, 0.3, 2.0])
    values = score(GRAPH, "batchnorm_scale", model=model).values["conv"]
    torch.testing.assert_close(values, torch.tensor([0.1, 0.4, 0.3, 2.0]))


def test_statistics_of_parameters_and_of_units_reach_the_criterion():
    model = TwoLayers()
    squares = torch.rand_like(model.conv.weight)
    units = torch.rand(4)
    statistics = Statistics(
        {"weight_gradient_square": {"conv.weight": squares}, "activation_taylor": {"conv in conv.weight[0]": units}},
        1,
        2,
    )
    weighted = score(GRAPH, "taylor_weight", statistics, model=model).values["conv"]
    torch.testing.assert_close(weighted, (model.conv.weight.detach().square() * squares).sum((1, 2, 3)))
    activation = score(GRAPH, "taylor_activation", statistics, model=model).values["conv"]
    torch.testing.assert_close(activation, units / units.norm())


def test_random_scores_depend_on_the_seed_and_the_group_alone():
    first = score(GRAPH, "random", model=TwoLayers(), seed=3).values["conv"]
    assert torch.equal(first, score(GRAPH, "random", model=TwoLayers(), seed=3).values["conv"])
    assert not torch.equal(first, score(GRAPH, "random", model=TwoLayers(), seed=4).values["conv"])
    (group,) = GRAPH.groups
    renamed = dataclasses.replace(GRAPH, groups=(dataclasses.replace(group, places=group.places[2:]), group))
    assert torch.equal(first, score(renamed, "random", model=TwoLayers(), seed=3).values["conv"])


def test_a_users_callable_and_a_tied_weight_under_its_other_name():
    model = TwoLayers()
    info = dataclasses.replace(GRAPH.tensors["conv.weight"], aliases=("other.weight",))
    graph = dataclasses.replace(GRAPH, tensors={**GRAPH.tensors, "conv.weight": info})
    tensors = {**model.state_dict(), "other.weight": model.conv.weight}
    del tensors["conv.weight"]
    values = score(graph, lambda w: w.amax(1), tensors=tensors).values["conv"]
    torch.testing.assert_close(values, model.conv.weight.detach().amax((1, 2, 3)))


def test_a_group_without_norm_is_an_error_or_falls_back():
    (group,) = GRAPH.groups
    bare = dataclasses.replace(group, places=tuple(p for p in group.places if p.role != "scale"))
    graph = dataclasses.replace(GRAPH, groups=(bare,))
    with pytest.raises(InputError, match=r"'batchnorm_scale' has nothing to read in group 'conv'.*fallback"):
        score(graph, "batchnorm_scale", model=TwoLayers())
    model = TwoLayers()
    spare = score(graph, "batchnorm_scale", model=model, fallback="l2_norm")
    assert torch.equal(spare.values["conv"], score(graph, "l2_norm", model=model).values["conv"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(bad):
    model = TwoLayers()
    model.conv.weight.data[2, 0, 1, 1] = bad
    with pytest.raises(InputError, match=r"'conv.weight' holds NaN or infinity in 1 of its 72"):
        score(GRAPH, "l2_norm", model=model)


def test_a_score_that_is_not_finite_or_not_per_unit_is_refused():
    with pytest.raises(InputError, match="gave inf for unit 0"):
        score(GRAPH, lambda w: w.abs().sum(1) / 0, model=TwoLayers())
    with pytest.raises(ShapeError, match=r"returned \(18,\).*shape \(4,\)"):
        score(GRAPH, lambda w: w.sum(0), model=TwoLayers())


def test_bad_arguments_say_what_would_work():
    model = TwoLayers()
    with pytest.raises(UnknownNameError, match="taylor_weight"):
        score(GRAPH, "taylor_wieght", model=model)
    with pytest.raises(InputError, match="model= or as tensors="):
        score(GRAPH, "l1_norm")
    with pytest.raises(InputError, match="one of them"):
        score(GRAPH, "l1_norm", model=model, tensors=model.state_dict())
    with pytest.raises(UnknownNameError, match=r"median.*mean"):
        score(GRAPH, "l1_norm", model=model, reduction="median")
    with pytest.raises(InputError, match=r"prunus\.statistics\.gather"):
        score(GRAPH, "taylor_weight", model=model)
    with pytest.raises(InputError, match=r"'conv.weight'.*model that was traced"):
        score(GRAPH, "l1_norm", tensors={})
    with pytest.raises(InputError, match="meta device"):
        score(GRAPH, "l1_norm", model=TwoLayers().to("meta"))


def test_scoring_changes_nothing():
    model = TwoLayers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    for name, criterion in CRITERIA.items():
        if not criterion.data_needs:
            score(GRAPH, name, model=model)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_criterion_may_read_any_role():
    model = TwoLayers()
    variance = Criterion("variance", lambda weight: weight[:, 0], frozenset({"weight"}), places=("statistic",))
    values = score(GRAPH, variance, model=model, reduction="sum").values["conv"]
    buffers = model.state_dict()
    torch.testing.assert_close(values, buffers["norm.running_mean"] + buffers["norm.running_var"])


def test_the_fallback_reads_any_place_where_a_group_has_none_that_it_prefers():
    (group,) = GRAPH.groups
    columns = dataclasses.replace(group, places=tuple(p for p in group.places if p.role != "out"))
    graph = dataclasses.replace(GRAPH, groups=(columns,))
    model = TwoLayers()
    spare = score(graph, "l2_norm", model=model, fallback="l2_norm")
    every = score(graph, "l2_norm", model=model, places=())
    assert torch.equal(spare.values["conv"], every.values["conv"])
