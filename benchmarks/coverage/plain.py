"""Cases in plain torch: what users write themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from case import Built, Case, disturb
from plain_nets import attention, custom, graphs, recurrent, vision
from torch import Tensor, nn

FAMILY = "torch"

Make = Callable[[], nn.Module]
Give = Callable[[], Any]


def _words(length: int = 8, words: int = 40) -> Tensor:
    return torch.randint(1, words, (2, length))


def _floats(*shape: int) -> Give:
    return lambda: torch.randn(shape)


def _adjacency(nodes: int) -> Tensor:
    upper = (torch.rand(nodes, nodes) > 0.5).triu(1).float()
    return upper + upper.T


def _edges(nodes: int, count: int = 14) -> Tensor:
    return torch.randint(0, nodes, (2, count))


def _recurrent() -> Iterator[tuple[str, Make, Give]]:
    model = recurrent.LanguageModel
    settings: dict[str, dict[str, Any]] = {
        "": {},
        "_layers": {"num_layers": 3, "batch_first": True},
        "_bidirectional": {"bidirectional": True, "num_layers": 2},
        "_no_bias": {"bias": False},
    }
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for name, how in settings.items():
            yield f"{kind.__name__.lower()}{name}", lambda kind=kind, how=how: model(kind, **how), _words
    yield "lstm_projected", lambda: model(nn.LSTM, proj_size=12, num_layers=2, batch_first=True), _words
    yield "lstm_projected_bidirectional", lambda: model(nn.LSTM, proj_size=12, num_layers=2, bidirectional=True), _words
    yield "lstm_last_state", recurrent.LastStateClassifier, _words
    yield "lstm_given_states", recurrent.GivenStates, _floats(5, 2, 6)
    yield "gru_packed", recurrent.PackedTagger, lambda: (_words(), torch.tensor([8, 5]))
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield f"{kind.__name__.lower()}_loop", lambda kind=kind: recurrent.CellLoop(kind), _words
    yield "cnn_lstm", recurrent.CnnLstm, _floats(2, 4, 3, 16, 16)
    yield "conv_lstm", recurrent.ConvLstm, _floats(2, 3, 1, 8, 8)
    yield "seq2seq_attention", recurrent.Seq2Seq, lambda: (_words(6), _words(4))
    yield "minimal_gated_unit", recurrent.MinimalGatedUnit, _floats(2, 5, 8)


def _attention() -> Iterator[tuple[str, Make, Give]]:
    yield "mha_self", lambda: attention.SelfAttention(batch_first=True), _floats(2, 6, 12)
    yield "mha_self_seq_first", lambda: attention.SelfAttention(bias=False, add_zero_attn=True), _floats(6, 2, 12)
    yield "mha_self_bias_kv", lambda: attention.SelfAttention(batch_first=True, add_bias_kv=True), _floats(2, 6, 12)
    yield "mha_cross_kdim_vdim", attention.CrossAttention, lambda: (torch.randn(2, 4, 8), torch.randn(2, 7, 6))
    yield "transformer_encoder", attention.EncoderClassifier, _words
    yield "transformer_encoder_prenorm", lambda: attention.EncoderClassifier(norm_first=True, activation="gelu"), _words
    yield "transformer_decoder", attention.DecoderModel, lambda: (_words(), torch.randn(2, 5, 12))
    yield "transformer", attention.Translator, lambda: (_words(2).T.repeat(3, 1), _words(2).T.repeat(2, 1))
    yield "einsum_attention", attention.EinsumAttention, _floats(2, 6, 12)
    yield "linear_attention", attention.LinearAttention, _floats(2, 6, 12)
    yield "grouped_query_decoder", attention.GatedQueries, _words
    yield "mlp_mixer", attention.MlpMixer, _floats(2, 3, 16, 16)
    yield "latent_cross_attention", attention.LatentReader, _floats(2, 7, 10)


def _vision() -> Iterator[tuple[str, Make, Give]]:
    yield "unet", vision.UNet, _floats(2, 3, 18, 18)
    yield "dcgan_generator", vision.Generator, _floats(2, 16, 1, 1)
    yield "dcgan_discriminator", vision.Discriminator, _floats(2, 3, 32, 32)
    yield "dense_generator", vision.DenseGenerator, _floats(2, 16)
    yield "yolo", vision.Yolo, _floats(2, 3, 64, 64)
    yield "odd_shuffle", vision.OddShuffle, _floats(2, 3, 8, 8)
    yield "permuted_channels", vision.PermutedChannels, _floats(2, 3, 8, 8)
    yield "selected_channels", vision.SelectedChannels, _floats(2, 3, 8, 8)
    yield "capsules", vision.Capsules, _floats(2, 1, 13, 13)
    yield "inception", vision.Inception, _floats(2, 3, 8, 8)
    yield "pointnet", vision.PointNet, _floats(2, 3, 10)
    yield "video_3d", vision.VideoNet, _floats(2, 1, 4, 8, 8)
    yield "wavenet", vision.WaveNet, _floats(2, 1, 20)
    yield "variational_autoencoder", vision.Autoencoder, _floats(2, 1, 16, 16)


def _graphs() -> Iterator[tuple[str, Make, Give]]:
    yield "gcn_dense", graphs.DenseGcn, lambda: (torch.randn(6, 12), _adjacency(6))
    yield "gat_dense", graphs.DenseGat, lambda: (torch.randn(6, 12), _adjacency(6))
    yield "message_passing", graphs.EdgeNetwork, lambda: (torch.randn(6, 8), _edges(6))
    if importlib.util.find_spec("torch_geometric"):
        for kind in ("gcn", "gat", "sage"):
            yield f"pyg_{kind}", lambda kind=kind: graphs.geometric(kind), lambda: (torch.randn(6, 12), _edges(6))


def _custom() -> Iterator[tuple[str, Make, Give]]:
    yield "bare_parameters", custom.BareParameters, _floats(2, 3, 8, 8)
    yield "tied_autoencoder", custom.TiedAutoencoder, _floats(2, 20)
    yield "shared_blocks", custom.SharedBlocks, lambda: _words(words=30)
    yield "siamese", custom.Siamese, lambda: (torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8))
    yield "hypernetwork", custom.Hypernetwork, lambda: (torch.randn(2, 10), torch.randn(2, 6))
    yield "hyper_convolution", custom.HyperConvolution, _floats(2, 3, 8, 8)
    yield "complex_layers", custom.ComplexNet, _floats(2, 10)
    yield "fourier_layer", custom.SpectralConvolution, _floats(2, 16, 2)
    yield "functional", custom.Functional, _floats(2, 6, 8)
    yield "control_flow_on_shape", custom.ShapeControl, _floats(2, 6, 8)
    yield "control_flow_on_data", custom.DataControl, _floats(2, 8)
    yield "weight_norm", lambda: custom.normed("weight"), _floats(2, 3, 8, 8)
    yield "spectral_norm", lambda: custom.normed("spectral"), _floats(2, 3, 8, 8)
    yield "orthogonal", lambda: custom.normed("orthogonal"), _floats(2, 3, 8, 8)
    yield "own_parametrization", custom.own_parametrization, _floats(2, 8)
    yield "dense_experts", custom.DenseExperts, _floats(2, 5, 8)
    yield "sparse_experts", custom.SparseExperts, _floats(2, 5, 8)
    yield "custom_layers", custom.custom_layers, _floats(2, 10)
    yield "deep_factors", custom.DeepFactors, lambda: torch.randint(0, 20, (2, 4))
    yield "tensor_subclass", custom.wrapped_weights, _floats(2, 8)


def _case(name: str, make: Make, give: Give) -> Case:
    def build() -> Built:
        torch.manual_seed(0)
        return disturb(make().eval()), give()

    return Case(FAMILY, name, build)


def cases() -> list[Case]:
    """Every network of `plain_nets`, small, with random weights."""
    kinds = (_recurrent, _attention, _vision, _graphs, _custom)
    return [_case(*entry) for kind in kinds for entry in kind()]
