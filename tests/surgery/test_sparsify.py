"""Exact zeros in the right places: against sorting by hand, and the laws that every pattern keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import CRITERIA
from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.masks import PATTERNS, masks_of, pattern_of
from prunus.types import Statistics

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = [(X, torch.tensor([0, 1, 2, 3])), (X.flip(0), torch.tensor([3, 2, 1, 1]))]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


WEIGHTS = ("0.weight", "3.weight", "7.weight", "9.weight")


def weights(model) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name).detach() for name in WEIGHTS}


def test_a_weight_of_the_literature():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -0.5], [0.3, -0.2]]))
    assert prunus.sparsify(layer, sparsity=0.5).masks["weight"].tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9, 0.995])
def test_each_layer_loses_its_smallest_weights_and_exactly_as_many_as_asked(sparsity):
    model = network()
    result = prunus.sparsify(model, sparsity=sparsity)
    for name, weight in weights(model).items():
        order = weight.flatten().abs().argsort(stable=True)
        gone = torch.zeros(weight.numel(), dtype=torch.bool)
        gone[order[: int(sparsity * weight.numel() + 1e-6)]] = True
        assert torch.equal(~result.masks[name].flatten(), gone)
    assert [layer.zeros for layer in result.report.layers] == [int((~m).sum()) for m in result.masks.values()]


@pytest.mark.parametrize("sparsity", [0.3, 0.95])
def test_global_ranking_is_one_sort_of_all_weights(sparsity):
    model = network()
    result = prunus.sparsify(model, sparsity=sparsity, scope="global")
    together = torch.cat([weight.flatten().abs() for weight in weights(model).values()])
    gone = torch.zeros(len(together), dtype=torch.bool)
    gone[together.argsort(stable=True)[: int(sparsity * len(together) + 1e-6)]] = True
    assert torch.equal(torch.cat([~mask.flatten() for mask in result.masks.values()]), gone)


@pytest.mark.parametrize("name", ["2:4", "1:4", "2:4@0"])
def test_every_group_of_n_m_keeps_its_n_largest(name):
    pattern = pattern_of(name)
    model = network()
    result = prunus.sparsify(model, sparsity=name)
    for tensor, mask in result.masks.items():
        layout = pattern.layout(tuple(mask.shape))
        kept, weight = layout.group(mask)[:, :, 0], layout.group(weights(model)[tensor].abs())[:, :, 0]
        assert (kept.sum(1) == pattern.n).all()
        lost = weight.masked_fill(kept, -1).amax(1)
        assert (weight.masked_fill(~kept, 1e9).amin(1) >= lost).all()
    if name == "2:4":
        assert [refusal.what for refusal in result.left] == ["0.weight"]
        assert "3 entries along axis 1" in result.left[0].reason


@pytest.mark.parametrize("name", [*PATTERNS, "4x1", "2x2", "column_balanced:4x4"])
def test_units_of_every_pattern_go_whole_and_in_exact_numbers_from_each_pool(name):
    result = prunus.sparsify(network(), sparsity=0.6, pattern=name)
    assert result.masks
    for mask in result.masks.values():
        layout = pattern_of(name).layout(tuple(mask.shape))
        grouped = layout.group(mask)
        assert torch.equal(grouped.all(2), grouped.any(2))
        assert ((~grouped.all(2)).sum(1) == int(0.6 * grouped.shape[1] + 1e-6)).all()


def test_blocks_of_one_are_unstructured():
    model = network()
    blocks = prunus.sparsify(model, sparsity=0.7, pattern="1x1", scope="global")
    single = prunus.sparsify(model, sparsity=0.7, scope="global")
    assert all(torch.equal(mask, single.masks[name]) for name, mask in blocks.masks.items())


def test_balanced_blocks_of_one_are_the_top_of_each_column():
    layer = nn.Linear(6, 8)
    mask = prunus.sparsify(layer, sparsity=0.5, pattern="column_balanced").masks["weight"]
    top = layer.weight.abs().topk(4, dim=0).indices
    assert torch.equal(mask, torch.zeros(8, 6, dtype=torch.bool).scatter(0, top, True))


def test_unit_criteria_score_the_units_of_a_pattern():
    model = network()
    by_norm = prunus.sparsify(model, sparsity=0.5, pattern="filter", criterion="l1_norm", layers="0")
    by_mean = prunus.sparsify(model, sparsity=0.5, pattern="filter", criterion="magnitude", layers="0")
    norms = model[0].weight.detach().abs().sum((1, 2, 3))
    kept = by_norm.masks["0.weight"].flatten(1).all(1)
    assert set(norms.topk(4).indices.tolist()) == set(kept.nonzero()[:, 0].tolist())
    assert torch.equal(by_norm.masks["0.weight"], by_mean.masks["0.weight"])
    prunus.sparsify(model, sparsity=0.5, pattern="stripe", criterion="geometric_median")


READABLE = {"weight", "kernels", "generator", "weight_gradient", "weight_gradient_square"}


@pytest.mark.parametrize("name", [n for n, c in CRITERIA.items() if c.needs <= READABLE and c.places != ("scale",)])
def test_every_criterion_of_weights_and_gradients_runs(name):
    model = network()
    results = [
        prunus.sparsify(model, sparsity=0.5, criterion=name, data=BATCHES, pattern="filter", layers=["0", "3"])
        for _ in range(2)
    ]
    assert results[0].report.sparsity == 0.5
    assert all(torch.equal(mask, results[1].masks[n]) for n, mask in results[0].masks.items())


def test_criteria_of_filters_need_filters():
    for name in (name for name, criterion in CRITERIA.items() if "kernels" in criterion.needs <= READABLE):
        with pytest.raises(InputError, match="pattern='filter'"):
            prunus.sparsify(network(), sparsity=0.5, criterion=name)


def test_snip_is_weight_times_gradient_of_the_mean_loss():
    model = network().eval()
    result = prunus.sparsify(model, sparsity=0.9, criterion="snip", data=BATCHES, scope="global")
    loss = sum(nn.functional.cross_entropy(model(x), y) for x, y in BATCHES) / 2
    gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in WEIGHTS])
    scores = [(w * g).abs().flatten() for w, g in zip(weights(model).values(), gradients)]
    threshold = torch.cat(scores).sort().values[int(0.9 * sum(map(len, scores)) + 1e-6)]
    found = torch.cat([mask.flatten() for mask in result.masks.values()])
    assert (found != (torch.cat(scores) >= threshold)).sum() <= 2  # sums in another order may swap a tie


def test_statistics_are_handed_over_by_name():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.5]]))
    given = Statistics({"hessian_diagonal": {"weight": torch.tensor([[4.0, 1.0]])}}, 1, 1)
    assert prunus.sparsify(layer, sparsity=0.5, criterion="obd", statistics=given).masks["weight"].tolist() == [
        [True, False]
    ]
    norms = Statistics({"input_norm": {"weight": torch.tensor([4.0, 1.0])}}, 1, 1)
    kept = prunus.sparsify(layer, sparsity=0.5, pattern="row", criterion="wanda", statistics=norms).masks["weight"]
    assert kept.tolist() == [[True, False]]


def test_transposed_weights_are_grouped_along_their_inputs():
    layer = nn.ConvTranspose2d(4, 8, 3)
    mask = prunus.sparsify(layer, sparsity="2:4").masks["weight"]
    assert mask.shape == (4, 8, 3, 3)
    assert (mask.sum(0) == 2).all()


def test_sparsity_by_layer():
    result = prunus.sparsify(network(), sparsity={"0": 0.5, "7.weight": "2:4", "9*": 0.25})
    assert [layer.zeros for layer in result.report.layers] == [108, 256, 16]
    assert [refusal.what for refusal in result.left] == ["3.weight"]
    with pytest.raises(UnknownNameError, match="'8'"):
        prunus.sparsify(network(), sparsity={"8": 0.5})
    with pytest.raises(InputError, match="scope='global' decides"):
        prunus.sparsify(network(), sparsity={"0": 0.5}, scope="global")


def test_the_given_model_stays_dense_unless_inplace():
    model = network()
    state = copy.deepcopy(model.state_dict())
    result = prunus.sparsify(model, sparsity=0.5)
    assert masks_of(model) == {}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    inplace = prunus.sparsify(model, sparsity=0.5, inplace=True)
    assert inplace.model is model
    assert torch.equal(result.model.eval()(X), model.eval()(X))
    assert torch.equal(inplace.finalize().eval()(X), result.model(X))


def test_masking_again_is_idempotent_and_only_adds_zeros():
    model = prunus.sparsify(network(), sparsity=0.5).model
    before = {name: mask.clone() for name, mask in masks_of(model).items()}
    same = prunus.sparsify(model, sparsity=0.5)
    assert all(torch.equal(mask, before[name]) for name, mask in same.masks.items())
    with torch.no_grad():  # what is under the mask has become large: it stays gone all the same
        for name, mask in before.items():
            model.get_submodule(name.split(".")[0]).parametrizations.weight.original[~mask] = 9.0
    more = prunus.sparsify(model, sparsity=0.8)
    assert all((mask <= before[name]).all() for name, mask in more.masks.items())
    assert more.report.sparsity == pytest.approx(0.8, abs=3e-3)
    free = prunus.sparsify(model, sparsity=0.5, regrow=True)
    assert all(torch.equal(mask, ~before[name]) for name, mask in free.masks.items())


def test_a_falling_sparsity_takes_back_the_best_of_what_was_gone():
    layer = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    result = prunus.sparsify(prunus.sparsify(layer, sparsity=4 / 6), sparsity=0.5)
    assert result.masks["weight"].tolist() == [[False, False, False, True, True, True]]


def test_weights_can_go_inside_filters_that_stay():
    model = prunus.sparsify(network(), sparsity=0.5, pattern="filter", layers="3").model
    filters = masks_of(model)["3.weight"].clone()
    both = prunus.sparsify(model, sparsity=0.75, layers="3").masks["3.weight"]
    assert (both <= filters).all()
    assert int(both.sum()) == filters.numel() // 4


def test_layers_and_keep_choose_what_is_masked():
    model = network()
    assert list(prunus.sparsify(model, sparsity=0.5, keep=("0", model[9])).masks) == ["3.weight", "7.weight"]
    assert list(prunus.sparsify(model, sparsity=0.5, layers=[model[3], "7.weight"]).masks) == ["3.weight", "7.weight"]
    embedding = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2))
    assert list(prunus.sparsify(embedding, sparsity=0.5).masks) == ["1.weight"]
    assert prunus.sparsify(embedding, sparsity=0.5).left[0].what == "0.weight"
    assert list(prunus.sparsify(embedding, sparsity=0.5, layers="0").masks) == ["0.weight"]


@pytest.mark.parametrize("scope", ["erk", "erdos_renyi", "lamp", "uniform_plus", "deviation"])
def test_allocations_decide_by_layer_and_the_total_is_exact(scope):
    result = prunus.sparsify(network(), sparsity=0.8, scope=scope)
    assert result.report.zeros == int(0.8 * 1368 + 1e-6)
    assert len({layer.sparsity for layer in result.report.layers}) > 1


def test_first_and_last_weights_can_stay_dense():
    result = prunus.sparsify(network(), sparsity=0.5, keep_first=1, keep_last=1)
    assert list(result.masks) == ["3.weight", "7.weight"]
    assert [refusal.what for refusal in result.left] == ["0.weight", "9.weight"]
    with pytest.raises(InputError, match="keep_last=-1"):
        prunus.sparsify(network(), sparsity=0.5, keep_last=-1)


def test_a_users_callable_scores_weights_and_a_users_allocation_counts():
    model = network()
    result = prunus.sparsify(model, sparsity=0.5, criterion=lambda weight: weight, layers="9")
    assert (model[9].weight[result.masks["9.weight"]].min() >= model[9].weight[~result.masks["9.weight"]].max()).item()
    one_each = prunus.sparsify(model, sparsity=0.5, scope=lambda layers, sparsity: [1] * len(layers))
    assert one_each.report.zeros == 4


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"sparsity": 1.5}, InputError, "in \\[0, 1\\)"),
        ({"sparsity": 90}, InputError, "did you mean 0.9"),
        ({"sparsity": True}, InputError, "in \\[0, 1\\)"),
        ({"sparsity": "stripe"}, InputError, "says no fraction"),
        ({"sparsity": "2:4", "pattern": "4x1"}, InputError, "pattern of its own"),
        ({"sparsity": 0.7, "pattern": "2:4"}, InputError, "0.5, not 0.7"),
        ({"sparsity": 0.5, "pattern": "strip"}, UnknownNameError, "stripe"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, UnknownNameError, "magnitude"),
        ({"sparsity": 0.5, "criterion": "batchnorm_scale"}, InputError, "of a norm"),
        ({"sparsity": 0.5, "criterion": "snip"}, InputError, "give data="),
        ({"sparsity": 0.5, "criterion": "taylor_joint", "data": BATCHES}, InputError, "unit_taylor"),
        ({"sparsity": 0.5, "scope": "globl"}, UnknownNameError, "global"),
        ({"sparsity": "2:4", "scope": "global"}, InputError, "leave out one"),
        ({"sparsity": 0.5, "pattern": "row", "scope": "global"}, InputError, "each of its pools"),
        ({"sparsity": 0.5, "layers": "conv"}, UnknownNameError, "layers="),
        ({"sparsity": 0.5, "gradients": "dense"}, InputError, "did you mean 'gradient'"),
        ({"sparsity": 0.5, "gradient": "some"}, UnknownNameError, "dense"),
        ({"sparsity": 0.5, "reduction": "median"}, UnknownNameError, "mean"),
        ({"sparsity": 0.5, "pattern": "7x1"}, InputError, "no weight can be masked.*does not tile"),
        ({"sparsity": 0.5, "criterion": lambda w: w.sum(1)}, ShapeError, "scores of shape"),
        ({"sparsity": 0.5, "criterion": lambda w: w / 0}, InputError, "not finite"),
        ({"sparsity": 0.5, "scope": lambda layers, s: [10**9] * len(layers)}, InputError, "how many of"),
    ],
)
def test_wrong_arguments_are_refused_with_a_way_out_and_nothing_changes(arguments, error, says):
    model = network()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=says):
        prunus.sparsify(model, inplace=True, **arguments)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_models_that_cannot_be_masked_say_why():
    with pytest.raises(InputError, match="no weights of linear"):
        prunus.sparsify(nn.ReLU(), sparsity=0.5)
    with pytest.raises(InputError, match="meta device"):
        prunus.sparsify(nn.Linear(2, 2, device="meta"), sparsity=0.5)
    broken = nn.Linear(2, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="'weight' holds NaN"):
        prunus.sparsify(broken, sparsity=0.5)
    with pytest.raises(InputError, match="no shape yet"):
        prunus.sparsify(nn.LazyLinear(4), sparsity=0.5)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(InputError, match="parametrised already"):
        prunus.sparsify(normed, sparsity=0.5)
