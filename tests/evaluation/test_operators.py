"""Operator counts against the specification's numbers and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from prunus import zoo
from prunus.errors import InputError, TraceError
from prunus.evaluation.operators import batch_of, count_operators
from prunus.graph import counting, trace


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "flops"),
    [
        (nn.Conv2d(3, 64, 3, padding=1), (3, 32, 32), 1_769_472, 3_670_016),
        (nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 32, 32), 37_748_736, 75_628_544),
        (nn.Conv2d(3, 64, 7, stride=2, padding=3), (3, 224, 224), 118_013_952, 237_633_536),
        (nn.Conv2d(32, 32, 3, padding=1, groups=32), (32, 112, 112), 3_612_672, 2 * (3_612_672 + 32 * 112 * 112)),
        (nn.Linear(300, 100), (300,), 30_000, 2 * 301 * 100),
        (nn.Linear(300, 100, bias=False), (7, 300), 7 * 30_000, 7 * 2 * 301 * 100),
        (nn.ConvTranspose2d(16, 8, 2, 2, groups=2), (16, 5, 5), 25 * 16 * 4 * 4, 2 * (25 * 16 * 4 * 4 + 8 * 100)),
        (nn.ConvTranspose3d(4, 6, 3), (4, 2, 2, 2), 8 * 4 * 6 * 27, 2 * (8 * 4 * 6 * 27 + 6 * 64)),
        (nn.Conv1d(8, 4, 3), (8, 10), 8 * 8 * 3 * 4, 2 * 8 * 4 * (8 * 3 + 1)),
        (nn.LSTM(128, 256, batch_first=True), (1, 128), 393_216, 2 * (393_216 + 2 * 1024)),
        (nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True), (5, 8), 5 * 2 * 16 * (8 + 4 + 8 + 4), None),
        (nn.GRU(8, 4, batch_first=True), (5, 8), 5 * 12 * (8 + 4), None),
        (nn.BatchNorm2d(8), (8, 4, 4), 0, 0),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Softmax(1)), (8, 4, 4), 0, 0),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_layers(layer, shape, macs, flops, batch):
    counts = count_operators(layer, torch.randn(batch, *shape))
    assert counts.macs == macs
    assert flops is None or counts.flops_survey == flops
    assert counts.macs_nonzero == pytest.approx(macs)
    assert not counts.uncounted


def encoder(n: int, d: int, hidden: int) -> int:
    return n * (4 * d * d + 2 * d * hidden) + 2 * n * n * d


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_in_eval_mode_whatever_path_it_takes(device):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).to(device)
    before = torch.backends.mha.get_fastpath_enabled()
    assert count_operators(model.eval(), torch.randn(2, 5, 16)).macs == 3 * encoder(5, 16, 32)
    assert torch.backends.mha.get_fastpath_enabled() == before


class Functional(nn.Module):
    """Everything that hooks on layers miss: functional calls, a layer used twice, einsum, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.kernel = nn.Parameter(torch.randn(4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x = torch.einsum("bnd,de->bne", x, self.weight)
        x = F.scaled_dot_product_attention(x, x, x) + torch.bmm(x, x.mT) @ x
        return F.conv1d(x, self.kernel, groups=4, padding=1)


def test_functional_calls_and_reused_layers_are_counted():
    counts = count_operators(Functional(), torch.randn(2, 4, 8))
    linear, product = 4 * 8 * 8, 4 * 4 * 8
    assert counts.macs == 3 * linear + 4 * product + 4 * 8 * 3
    # weights: 2 (macs + outputs); products of activations: 2 macs
    assert counts.flops_survey == 2 * (3 * (linear + 32) + (96 + 32) + 4 * product)


def test_batches_share_the_work_equally():
    model = Functional()
    assert count_operators(model, torch.randn(1, 4, 8)).macs == count_operators(model, torch.randn(5, 4, 8)).macs


class Masked(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 20))
        self.register_buffer("mask", torch.ones(10, 20))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask)


def test_zeros_are_seen_in_weights_masks_and_pruning_hooks():
    plain, hooked, masked = nn.Linear(20, 10), nn.Linear(20, 10), Masked()
    with torch.no_grad():
        plain.weight[:, :15] = 0
    prune.random_unstructured(hooked, "weight", 0.75)
    masked.mask[:, :15] = 0
    for model in (plain, hooked, masked):
        counts = count_operators(model, torch.randn(4, 20))
        assert counts.macs == 200
        assert counts.macs_nonzero == pytest.approx(50)


def test_each_layer_has_its_own_density():
    conv, linear = nn.Conv2d(2, 4, 1, bias=False), nn.Linear(36, 10)
    with torch.no_grad():
        conv.weight[:2] = 0
        linear.weight[:, :27] = 0
    counts = count_operators(nn.Sequential(conv, nn.Flatten(), linear), torch.randn(2, 2, 3, 3))
    assert counts.macs_nonzero == pytest.approx(72 * 0.5 + 360 * 0.25)


def test_recurrent_weights_have_their_zeros():
    model = nn.LSTM(8, 4, batch_first=True)
    with torch.no_grad():
        model.get_parameter("weight_hh_l0").zero_()
    assert count_operators(model, torch.randn(2, 5, 8)).macs_nonzero == pytest.approx(5 * 16 * 8)


def test_zeros_of_activations_do_not_count():
    counts = count_operators(nn.Linear(8, 8), torch.zeros(2, 8))
    assert counts.macs_nonzero == 64


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real + torch.cdist(x, x).sum()


def test_what_has_no_rule_is_listed():
    counts = count_operators(Fourier(), torch.randn(2, 8))
    assert "aten::_fft_r2c" in counts.uncounted
    assert any("cdist" in name for name in counts.uncounted)
    assert counts.macs == 0


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Hardtanh, nn.RReLU, nn.Dropout, nn.AlphaDropout),
)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_count_nothing_and_are_known(activation, inplace):
    counts = count_operators(nn.Sequential(nn.BatchNorm1d(4), activation(inplace=inplace)), torch.randn(2, 4))
    assert counts.macs == 0
    assert not counts.uncounted


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.GELU(), nn.PReLU(), nn.LogSigmoid(), nn.Softplus(), nn.Softsign(), nn.Tanh(), nn.GLU(), nn.LogSoftmax(1)),
        *(nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2)),
        *(nn.LPPool2d(2, 2), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(8), nn.RMSNorm(8)),
        *(nn.LocalResponseNorm(2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.ZeroPad2d(1)),
        *(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.Upsample(scale_factor=2)),
        *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Flatten()),
        *(nn.Unfold(2), nn.Softmax2d(), nn.Dropout2d(), nn.Identity(), nn.Unflatten(1, (2, 2))),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_without_weight_matrices_count_nothing_and_are_known(layer):
    counts = count_operators(layer, torch.randn(2, 4, 8, 8))
    assert counts.macs == 0
    assert not counts.uncounted


class Inference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.matmul(self.layer(x), torch.ones(4, 2))


def test_composite_operators_are_taken_apart_in_inference_mode():
    counts = count_operators(Inference(), torch.randn(2, 3))
    assert counts.macs == 3 * 4 + 4 * 2
    assert not counts.uncounted


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    count_operators(model, torch.randn(4, 3, generator=torch.Generator()))
    assert model.training
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "resnet20_b", "densenet40", "mobilenet_v2"])
def test_the_graphs_count_is_the_same(name):
    """Two counters that share no rule: one reads the recorded graph's axes, this one the shapes of what ran."""
    model, x = zoo.build(name), torch.randn(2, *zoo.MODELS[name].input_shape)
    assert counting.macs(trace(model, x)) == count_operators(model, x).macs


def test_the_graphs_count_of_attention_is_the_same():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    x = torch.randn(2, 5, 16)
    assert counting.macs(trace(model, x)) == count_operators(model, x).macs == 2 * encoder(5, 16, 32)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(TraceError, match=r"shapes \[\(2, 5\)\]"):
        count_operators(nn.Linear(3, 4), torch.randn(2, 5))
    with pytest.raises(InputError, match="example_inputs: got a tensor of shape"):
        count_operators(nn.Linear(3, 4), torch.tensor(1.0))
    with pytest.raises(InputError, match="example_inputs: got dict"):
        count_operators(nn.Linear(3, 4), {})
    assert batch_of({"x": torch.zeros(5, 2), "y": torch.zeros(1)}) == 5
