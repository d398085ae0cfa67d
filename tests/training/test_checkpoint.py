from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import InputError, StoredFileError
from prunus.training import Distillation, TrainingConfig, fit
from prunus.training.checkpoint import FILE, pack_optimizer, read, unpack_optimizer
from prunus.training.optimizers import optimizer_of

from .small import blobs, small_convnet

CONFIG = TrainingConfig(epochs=1, batch_size=32, precision="fp32")


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoint of a finished run of CONFIG."""
    fit(small_convnet(), blobs(), CONFIG, checkpoint=tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_one_file_and_nothing_else_is_left(folder):
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_no_checkpoint_is_none(tmp_path):
    assert read(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "foreign"])
def test_a_damaged_checkpoint_is_refused_and_the_model_untouched(folder, damage):
    content = (folder / FILE).read_bytes()
    if damage == "truncated":
        (folder / FILE).write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        (folder / FILE).write_bytes(b"")
    elif damage == "pickle":
        torch.save({"model": 1}, folder / FILE)
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, folder / FILE)
    model = small_convnet(1)
    weight = model[0].weight.detach().clone()
    with pytest.raises(StoredFileError, match="resume=False"):
        fit(model, blobs(), CONFIG, checkpoint=folder, progress=False)
    assert torch.equal(model[0].weight, weight)
    fit(model, blobs(), CONFIG, checkpoint=folder, resume=False, progress=False)
    assert not torch.equal(model[0].weight, weight)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.01}, "config.lr was 0.05, now 0.01"),
        ({"epochs": 2, "seed": 3}, "config.epochs was 1, now 2; config.seed was 0, now 3"),
        ({"ema": 0.9}, "config.ema was None, now 0.9"),
    ],
)
def test_another_config_is_refused_by_its_fields(folder, changes, says):
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), **changes})
    with pytest.raises(InputError) as error:
        fit(small_convnet(), blobs(), config, checkpoint=folder, progress=False)
    assert says in str(error.value)
    assert "resume=False" in str(error.value)


def test_another_model_is_refused_by_its_tensors(folder):
    with pytest.raises(InputError, match=r"0\.weight was \(6, 1, 3, 3\) float32, now \(5, 1, 3, 3\) float32"):
        fit(small_convnet(width=5), blobs(), CONFIG, checkpoint=folder, progress=False)
    with pytest.raises(InputError, match=r"0\.weight was \(6, 1, 3, 3\) float32, now absent"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), blobs(), CONFIG, checkpoint=folder, progress=False)


def test_other_data_and_a_teacher_are_refused(folder):
    with pytest.raises(InputError, match="samples was 96, now 90"):
        fit(small_convnet(), blobs(90), CONFIG, checkpoint=folder, progress=False)
    taught = TrainingConfig.from_dict({**CONFIG.to_dict(), "distillation": {}})
    with pytest.raises(InputError, match="teacher was False, now True"):
        fit(small_convnet(), blobs(), taught, teacher=small_convnet(1), checkpoint=folder, progress=False)
    assert taught.distillation == Distillation()


def test_how_often_it_is_saved_may_change(folder):
    config = TrainingConfig.from_dict({**CONFIG.to_dict(), "checkpoint_every": 2})
    result = fit(small_convnet(), blobs(), config, checkpoint=folder, progress=False)
    assert result.steps == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        fit(small_convnet(), blobs(), CONFIG, checkpoint=tmp_path / "run", progress=False)


def test_a_folder_that_is_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "run").write_text("x")
    model = small_convnet()
    weight = model[0].weight.detach().clone()
    with pytest.raises(InputError, match="cannot be written"):
        fit(model, blobs(), CONFIG, checkpoint=tmp_path / "run", progress=False)
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimiser_state_returns_in_the_layout_of_its_parameters(kind):
    model: Any = nn.Conv2d(3, 4, 3)
    model.to(memory_format=torch.channels_last)
    config = TrainingConfig(optimizer=kind)
    first, second = (optimizer_of(model, config, torch.device("cpu")) for _ in range(2))
    for _ in range(2):
        first.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        first.step()
    unpack_optimizer(second, *pack_optimizer(first))
    for parameter in model.parameters():
        state, copy = first.state[parameter], second.state[parameter]
        assert state.keys() == copy.keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(copy[key], value)
                assert copy[key].dtype == value.dtype
                if value.dim() == 4:
                    assert copy[key].stride() == parameter.stride()
            else:
                assert copy[key] == value
