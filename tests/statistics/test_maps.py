"""Statistics of feature maps against hand-computed values and closed forms; streaming equals all at once."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dct
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.errors import InputError
from prunus.statistics import MAP_ACCUMULATORS, fsim, information, maps
from prunus.statistics.sites import sites_of


def image(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows)[None, None]


def test_zero_fraction_and_std_of_the_worked_examples():
    assert maps.zero_fraction(image((0.0, 1.0), (2.0, 0.0))).item() == 0.5
    assert maps.map_std(image((0.0, 2.0), (0.0, 2.0))).item() == 1


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [(torch.ones(4, 4), 1), (torch.eye(4), 4), (torch.zeros(4, 4), 0), (torch.outer(torch.rand(5), torch.rand(3)), 1)],
)
def test_ranks(matrix, rank):
    assert maps.map_rank(matrix[None, None]).item() == rank
    assert maps.map_rank(-3e-4 * matrix[None, None]).item() == rank


def test_cosines_of_proportional_and_of_disjoint_maps():
    found = maps.map_cosine(torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]))[0]
    assert found[0].tolist() == [1, 1, 0, 0]


def test_ssim_is_one_with_itself_symmetric_and_minus_one_for_opposites():
    pair = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert maps.map_ssim(pair, 0.0, 0.0)[0, 0, 1].item() == pytest.approx(-1)
    found = maps.map_ssim(torch.rand(3, 5, 6, 6))
    assert torch.allclose(found, found.mT)
    assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.ones(3, 5, dtype=torch.float64))


def test_psnr_from_its_definition():
    first, second = torch.rand(4, 4), torch.rand(4, 4)
    found = maps.map_psnr(torch.stack([first, second])[None])[0]
    error = (first - second).double().square().mean()
    reach = torch.stack([first, second]).double().amax()
    assert found[0, 1].item() == pytest.approx(10 * math.log10(reach**2 / error))
    assert found[0, 0].item() == 200


def test_dct_matrix_is_scipys():
    signal = torch.randn(7, dtype=torch.float64)
    assert torch.allclose(maps.dct_matrix(7, False) @ signal, torch.from_numpy(dct(signal.numpy(), type=2)))
    assert torch.allclose(
        maps.dct_matrix(7, True) @ signal, torch.from_numpy(dct(signal.numpy(), type=2, norm="ortho"))
    )


def test_uniqueness_of_twins_and_of_orthogonal_maps_and_that_the_transform_changes_nothing():
    maps_ = torch.tensor([[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert maps.dct_uniqueness(maps_).tolist() == [[0, 0, 1]]
    images = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    spectrum = maps.dct_matrix(6, True) @ images @ maps.dct_matrix(6, True).T
    assert torch.allclose(maps.dct_uniqueness(images), maps.dct_uniqueness(spectrum))
    assert not torch.allclose(maps.dct_uniqueness(images), maps.dct_uniqueness(images, keep_low=True))


def test_perceptual_hashes():
    one = torch.randn(1, 1, 8, 8)
    same, opposite = maps.perceptual_hash(3 * one), maps.perceptual_hash(-one)
    assert torch.equal(maps.perceptual_hash(one), same)
    assert torch.equal(maps.perceptual_hash(one), ~opposite)
    assert maps.perceptual_hash(torch.ones(1, 1, 8, 8)).sum() == 1
    assert maps.perceptual_hash(torch.zeros(1, 1, 8, 8)).sum() == 64
    assert maps.phash_similarity(torch.cat([one, -one], 1))[0, 0, 1].item() == 0


def test_two_dimensional_entropy_against_counting_pairs():
    assert maps.map_entropy_2d(torch.full((1, 1, 6, 6), 0.3)).item() == 0
    found = maps.map_entropy_2d(torch.rand(1, 1, 7, 7)).item()
    assert 0 < found <= math.log2(49) + 1e-9
    halves = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], 1)[None, None]  # pairs: far and near the edge, each side
    counts = torch.tensor([3 / 8, 1 / 8, 1 / 8, 3 / 8])
    assert maps.map_entropy_2d(halves).item() == pytest.approx(-(counts * counts.log2()).sum().item(), abs=1e-6)


@pytest.mark.parametrize("side", [8, 24])
def test_fsim_is_one_with_itself_symmetric_and_between_zero_and_one(side):
    torch.manual_seed(0)
    found = fsim.map_fsim(torch.rand(2, 3, side, side))
    assert torch.allclose(found, found.mT)
    assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.ones(2, 3, dtype=torch.float64))
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-12


def test_phase_congruency_is_high_at_an_edge_and_low_away_from_it():
    step = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    step[..., 16:] = 255
    found = fsim.phase_congruency(step)[0, 0, 16]
    assert found[15:17].max() > 0.6
    assert found[6:9].max() < found[15:17].max() - 0.1
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [((0, 0, 10, 10), 1.0, 1.0), ((5, 5, 5, 5), 1.0, 0.0), ((0, 10, 0, 10), 1.0, 0.0), ((0, 10, 20, 30), 1.0, 1.0)],
)
def test_information_of_the_worked_examples(values, width, expected):
    labels = F.one_hot(torch.tensor([0, 0, 1, 1])).double()
    own = information.kernel(torch.tensor(values, dtype=torch.float64)[:, None], width)
    wanted = information.kernel(labels, information.LABEL_WIDTH)
    assert information.information(own, wanted).item() == pytest.approx(expected, abs=1e-6)


def test_label_information_prefers_the_unit_that_tells_the_classes_apart():
    labels = torch.arange(40) % 2
    telling = labels[:, None].float() + 0.01 * torch.randn(40, 1)
    found = information.label_information(torch.cat([telling, torch.randn(40, 1)], 1), labels)
    assert found[0] > found[1] + 0.3


# ---------------------------------------------------------------------------------------------------------- streaming


class Functional(nn.Module):
    """Normalisation and activation partly without modules; a residual sum; a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        a = F.relu_(self.norm(self.first(x)))
        small = F.max_pool2d(a, 2)
        b = F.relu(self.second(small) + small)
        return self.head(b.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Functional().eval()
    inputs, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    return model, prunus.trace(model, inputs[:2]), inputs, labels


def test_sites_are_the_activations_behind_the_layers(network):
    _, graph, _, _ = network
    sites = {key: (site.operator, site.call) for key, site in sites_of(graph).items()}
    assert {operator for operator, _ in sites.values()} <= {"aten::relu", "aten::relu_"}
    raw = {site.operator for site in sites_of(graph, activated=False).values()}
    assert raw == {"aten::convolution"}


@pytest.mark.parametrize("split", [1, 2, 4])
def test_streaming_equals_all_at_once(network, split):
    model, graph, inputs, labels = network
    needs = [need for need in MAP_ACCUMULATORS if need != "label_information"]  # that one is defined per batch
    whole = prunus.collect(model, [(inputs, labels)], needs, graph=graph)
    pieces = list(zip(inputs.split(split), labels.split(split)))
    parts = prunus.collect(model, pieces, needs, graph=graph)
    for need in needs:
        assert whole.values[need].keys() == parts.values[need].keys() != set()
        for key, value in whole.values[need].items():
            assert torch.allclose(value, parts.values[need][key], rtol=1e-4, atol=1e-6), need


def test_what_is_seen_is_the_map_before_anything_overwrites_it(network):
    model, graph, inputs, _ = network
    statistics = prunus.collect(model, [inputs], ["zero_fraction"], graph=graph)
    first = F.relu(model.norm(model.first(inputs)))
    expected = (first == 0).double().mean((0, 2, 3))
    found = [v for k, v in statistics.values["zero_fraction"].items() if "first.weight" in k]
    assert found
    assert torch.allclose(found[0].double(), expected)


def test_the_model_is_left_alone_and_labels_are_asked_for(network):
    model, graph, inputs, _ = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="class number"):
        prunus.collect(model, [inputs], ["class_scatter"], graph=graph)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="graph="):
        prunus.collect(model, [inputs], ["map_rank"])


def test_class_scatter_is_that_of_the_pooled_maps(network):
    model, graph, inputs, labels = network
    statistics = prunus.collect(model, [(inputs, labels)], ["class_scatter", "pooled"], graph=graph)
    for key, scatter in statistics.values["class_scatter"].items():
        pooled = statistics.values["pooled"][key].double()
        means = torch.stack([pooled[:, labels == c].mean(1) for c in range(4)], 1)
        within = sum((pooled[:, labels == c] - means[:, c : c + 1]).square().sum(1) for c in range(4))
        between = (2 * (means - pooled.mean(1, keepdim=True)).square()).sum(1)
        assert torch.allclose(
            scatter.double(), torch.stack([between, torch.as_tensor(within)], 1), rtol=1e-3, atol=1e-5
        )
