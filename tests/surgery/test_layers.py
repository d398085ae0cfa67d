"""Every known layer type, cut by hand: its attributes are those of a layer built at the new size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import SurgeryError
from prunus.graph import plan_from, trace
from prunus.surgery import apply
from prunus.surgery.layers import FOLLOWS, follow
from prunus.types import AttributeChange, OperatorShape, TensorCut

from .helpers import plan_of


class MyConv(nn.Conv2d):
    """A user's subclass."""


KEEP = (0, 2)
NORM = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
RECURRENT = (("weight_ih_l0", 1),)

CASES = {
    "conv in": (nn.Conv2d(4, 6, 3), (("weight", 1),), nn.Conv2d(2, 6, 3)),
    "conv1d out": (nn.Conv1d(3, 4, 3), (("weight", 0), ("bias", 0)), nn.Conv1d(3, 2, 3)),
    "conv3d out": (nn.Conv3d(3, 4, 3), (("weight", 0), ("bias", 0)), nn.Conv3d(3, 2, 3)),
    "grouped, inside the groups": (nn.Conv2d(8, 8, 3, groups=2), (("weight", 1),), nn.Conv2d(4, 8, 3, groups=2)),
    "transposed in": (nn.ConvTranspose2d(4, 6, 3), (("weight", 0),), nn.ConvTranspose2d(2, 6, 3)),
    "transposed out": (nn.ConvTranspose2d(6, 4, 3), (("weight", 1), ("bias", 0)), nn.ConvTranspose2d(6, 2, 3)),
    "subclass": (MyConv(3, 4, 3), (("weight", 0), ("bias", 0)), MyConv(3, 2, 3)),
    "linear": (nn.Linear(4, 5), (("weight", 1),), nn.Linear(2, 5)),
    "bilinear": (nn.Bilinear(3, 4, 5), (("weight", 2),), nn.Bilinear(3, 2, 5)),
    "batch norm": (nn.BatchNorm2d(4), NORM, nn.BatchNorm2d(2)),
    "sync batch norm": (nn.SyncBatchNorm(4), NORM, nn.SyncBatchNorm(2)),
    "statistics only": (nn.BatchNorm1d(4, affine=False), NORM[2:], nn.BatchNorm1d(2, affine=False)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), NORM[:2], nn.InstanceNorm2d(2, affine=True)),
    "layer norm": (nn.LayerNorm([3, 4]), (("weight", 1), ("bias", 1)), nn.LayerNorm([3, 2])),
    "rms norm": (nn.RMSNorm(4), (("weight", 0),), nn.RMSNorm(2)),
    "group norm": (nn.GroupNorm(2, 4), NORM[:2], nn.GroupNorm(2, 2)),
    "embedding": (nn.Embedding(7, 4), (("weight", 1),), nn.Embedding(7, 2)),
    "vocabulary": (nn.Embedding(4, 3, padding_idx=2), (("weight", 0),), nn.Embedding(2, 3, padding_idx=1)),
    "lost padding row": (nn.Embedding(4, 3, padding_idx=3), (("weight", 0),), nn.Embedding(2, 3)),
    "embedding bag": (nn.EmbeddingBag(7, 4), (("weight", 1),), nn.EmbeddingBag(7, 2)),
    "prelu": (nn.PReLU(4), (("weight", 0),), nn.PReLU(2)),
    "lstm input": (nn.LSTM(4, 6), RECURRENT, nn.LSTM(2, 6)),
    "gru input": (nn.GRU(4, 6), RECURRENT, nn.GRU(2, 6)),
    "rnn input": (nn.RNN(4, 6), RECURRENT, nn.RNN(2, 6)),
    "lstm cell input": (nn.LSTMCell(4, 6), (("weight_ih", 1),), nn.LSTMCell(2, 6)),
    "attention keys": (
        nn.MultiheadAttention(6, 2, kdim=4, vdim=8),
        (("k_proj_weight", 1),),
        nn.MultiheadAttention(6, 2, kdim=2, vdim=8),
    ),
}


def _sizes(layer: nn.Module) -> dict[str, object]:
    return {k: v for k, v in layer.__dict__.items() if isinstance(v, int | tuple | str | None) and k != "prunus_plans"}


@pytest.mark.parametrize("case", CASES)
def test_attributes_equal_those_of_a_layer_built_at_the_new_size(case: str):
    layer, dims, expected = CASES[case]
    tensors = tuple(TensorCut(name, d, getattr(layer, name).shape[d], KEEP) for name, d in dims)
    result = apply(layer, plan_of(tensors), verify=False)
    assert _sizes(result) == _sizes(expected)
    assert {n: t.shape for n, t in result.state_dict().items()} == {
        n: t.shape for n, t in expected.state_dict().items()
    }


def _gates(size: int, gates: int, keep: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(gate * size + unit for gate in range(gates) for unit in keep)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_recurrent_layer_loses_hidden_units_and_still_runs(kind: type, gates: int, inplace: bool):
    layer = kind(3, 5, batch_first=True)
    rows = _gates(5, gates, (1, 4))
    tensors = (
        *(TensorCut(f"{name}_l0", 0, 5 * gates, rows) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        TensorCut("weight_hh_l0", 1, 5, (1, 4)),
    )
    zeroed = kind(3, 5, batch_first=True)
    gone = [row for row in range(5 * gates) if row not in rows]
    with torch.no_grad():
        for name, tensor in zeroed.named_parameters():
            tensor.copy_(getattr(layer, name))
            tensor[gone] = 0.0
        zeroed.weight_hh_l0[:, [0, 2, 3]] = 0.0
    x = torch.randn(2, 4, 3)
    result = apply(layer, plan_of(tensors), inplace=inplace, verify=False)
    assert result.hidden_size == 2
    assert torch.allclose(result(x)[0], zeroed(x)[0][..., [1, 4]], atol=1e-6)


def test_attention_heads_and_width_follow_the_plan():
    layer = nn.MultiheadAttention(8, 4, batch_first=True)
    keep = (0, 1, 4, 5)  # two of four heads, which leaves a width of four
    rows = tuple(part * 8 + unit for part in range(3) for unit in keep)
    tensors = (
        TensorCut("in_proj_weight", 0, 24, rows),
        TensorCut("in_proj_weight", 1, 8, keep),
        TensorCut("in_proj_bias", 0, 24, rows),
        TensorCut("out_proj.weight", 0, 8, keep),
        TensorCut("out_proj.weight", 1, 8, keep),
        TensorCut("out_proj.bias", 0, 8, keep),
    )
    plan = plan_of(tensors, attributes=(AttributeChange("", "num_heads", 4, 2),))
    result = apply(layer, plan, verify=False)
    assert _sizes(result) == _sizes(nn.MultiheadAttention(4, 2, batch_first=True))
    x = torch.randn(2, 3, 4)
    assert result(x, x, x)[0].shape == (2, 3, 4)


def test_groups_that_no_longer_divide_are_refused():
    norm = nn.GroupNorm(2, 4)
    plan = plan_of((TensorCut("weight", 0, 4, (0, 1, 2)), TensorCut("bias", 0, 4, (0, 1, 2))))
    with pytest.raises(SurgeryError, match="num_channels becomes 3, which num_groups=2 does not divide"):
        apply(norm, plan, verify=False)


@pytest.mark.filterwarnings("error:input's size at dim")
def test_a_norm_without_tensors_takes_its_width_from_its_output():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))
    plan = plan_of(
        (TensorCut("0.weight", 0, 4, KEEP), TensorCut("0.bias", 0, 4, KEEP)),
        shapes=(OperatorShape("aten::view", "1", ((2, 2, 6, 6),)),),
    )
    result = apply(model, plan, verify=False)
    assert result[1].num_features == 2
    assert result(torch.randn(2, 3, 8, 8)).shape == (2, 2, 6, 6)


def test_no_rule_of_the_table_is_untested():
    covered = {kind for layer, _, _ in CASES.values() for kind in type(layer).__mro__ if kind in FOLLOWS}
    assert {kind for kind in FOLLOWS if not isinstance(kind, str)} <= covered


def test_a_projection_as_wide_as_the_hidden_units_is_refused():
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, proj_size=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    model = Outputs()
    graph = trace(model, torch.randn(5, 2, 3))
    hidden = next(g.name for g in graph.groups if g.size == 4)
    with pytest.raises(SurgeryError, match="proj_size=2 must stay below hidden_size, which becomes 2"):
        apply(model, plan_from(graph, {hidden: [0, 1]}))


def test_a_weight_norm_is_cut_in_its_length_and_its_direction():
    torch.manual_seed(0)
    positions = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 8, 3), dim=2)
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), positions, nn.ReLU(), nn.Conv1d(8, 2, 1)).eval()
    result = prunus.prune(model, torch.randn(2, 3, 9), ratio=0.5)
    assert result.model[2].weight.shape == (4, 3, 3)
    assert (result.model[2].in_channels, result.model[2].out_channels) == (3, 4)
    assert result.plan.neutral  # and so was compared with the masked model


def test_an_attribute_of_ones_own_follows_a_tensor_and_the_ways_of_the_base_class_stay():
    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 3)
            self.hidden_dim = 8

    follow(Own, "hidden_dim", "weight", 1)
    follow(f"{Own.__module__}.Elsewhere", "size", "weight")
    result = prunus.prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Own()), torch.randn(2, 4), ratio=0.5)
    assert (result.model[2].hidden_dim, result.model[2].in_features, result.model[2].out_features) == (4, 4, 3)
