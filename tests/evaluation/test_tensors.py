"""Counts of entries and zeros, and bytes by format, against closed forms and real files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize, prune

from prunus.errors import InputError, UnknownNameError
from prunus.evaluation import tensors


class Recurrent(nn.Module):
    """ConvLSTM cell with one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 16, 4 * 16, 3, padding=1)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(64, 128, 3), 73_856),
        (nn.LSTM(128, 256), 395_264),
        (nn.GRU(7, 5), 3 * 5 * (7 + 5 + 2)),
        (Recurrent(), 11_008),
        (nn.MultiheadAttention(8, 2), 4 * 64 + 4 * 8),
        (nn.TransformerEncoderLayer(768, 12, 3072, device="meta"), 7_087_872),
        (nn.BatchNorm2d(9), 18),
        (nn.Conv2d(8, 12, 3, groups=4, bias=False), 12 * 2 * 9),
    ],
    ids=["conv", "lstm", "gru", "convlstm", "attention", "vit block", "batch norm", "groups"],
)
def test_closed_forms_of_the_specification(module, expected):
    assert tensors.parameter_count(module) == expected


def test_tied_parameters_count_once_and_frozen_ones_are_not_trainable():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    assert tensors.parameter_count(model) == 16 + 8 + 2
    assert tensors.parameter_count(model, trainable=True) == 16 + 8
    assert tensors.entries(tensors.used_tensors(model)) == 26


class Half(nn.Module):
    def forward(self, weight):
        return torch.cat([weight[:1], torch.zeros_like(weight[1:])])


def test_weights_are_seen_as_the_model_uses_them():
    model = nn.Sequential(nn.Linear(10, 2), nn.Linear(2, 10))
    parametrize.register_parametrization(model[0], "weight", Half())
    prune.l1_unstructured(model[1], "weight", 0.9)
    used = tensors.used_tensors(model)
    assert set(used) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert int(torch.count_nonzero(used["0.weight"])) == 10
    assert int(torch.count_nonzero(used["1.weight"])) == 2
    assert tensors.entries(used) == 20 + 2 + 20 + 10
    assert set(tensors.weights_only(used)) == {"0.weight", "1.weight"}


def test_bytes_by_format_at_the_break_even_densities():
    weight = torch.zeros(10, 100)
    weight[:, :10] = 1
    assert tensors.storage_bytes(weight, "csr") == 844
    assert tensors.storage_bytes(weight, "dense") == 4000
    assert tensors.storage_bytes(weight, "bitmap") == 400 + 125
    half = torch.zeros(1000, 1000)
    half[:, :500] = 1
    assert tensors.storage_bytes(half, "csr") == pytest.approx(tensors.storage_bytes(half, "dense"), rel=0.002)
    full = torch.ones(32, 1000)
    full[31] = 0  # density 0.96875
    assert tensors.storage_bytes(full, "bitmap") == tensors.storage_bytes(full, "dense")
    with pytest.raises(UnknownNameError, match="'csc': did you mean 'csr'"):
        tensors.storage_bytes(full, "csc")


def test_file_bytes_are_those_of_a_real_file(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert tensors.file_bytes(model) == (tmp_path / "m.safetensors").stat().st_size
    assert len(load_file(tmp_path / "m.safetensors")) == 7


def test_tied_and_strided_tensors_are_written_once():
    plain, tied = nn.Linear(64, 64, bias=False), nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(2)])
    tied[1].weight = tied[0].weight
    assert tensors.file_bytes(tied) - tensors.file_bytes(plain) < 64
    strided = nn.Linear(64, 64, bias=False)
    strided.weight = nn.Parameter(strided.weight.detach().t())
    assert tensors.file_bytes(strided) == tensors.file_bytes(plain)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(InputError, match="no parameters"):
        tensors.file_bytes(nn.ReLU())
    with pytest.raises(InputError, match="meta device"):
        tensors.file_bytes(nn.Linear(2, 2, device="meta"))
