"""Trained weights: that they are the right ones shows in the accuracy; that strangers' files are refused shows here
too."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunus.data import Split, load
from prunus.errors import StoredFileError, UnknownNameError
from prunus.zoo import PRETRAINED, build, load_pretrained, weights
from prunus.zoo.pretrained import fill


def accuracy(model: nn.Module, split: Split) -> float:
    with torch.no_grad():
        right = [int((model(x).argmax(1) == y).sum()) for x, y in split.batches(250)]
    return sum(right) / len(split)


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def test_pretrained_resnet20_knows_cifar10(data_root):
    test = load("cifar10", root=data_root, limit=500).normalised(*PRETRAINED["resnet20"].normalisation).test
    assert 0.88 <= accuracy(load_pretrained("resnet20", data_root), test) <= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_networks_reach_their_accuracy_on_all_test_images(name, data_root):
    known = PRETRAINED[name]
    test = load("cifar10", root=data_root).normalised(*known.normalisation).test
    # a few images near the boundary may fall either way with the order of the sums
    assert accuracy(load_pretrained(name, data_root), test) == pytest.approx(known.accuracy, abs=3e-4)


def test_a_file_of_ones_own_round_trips_without_num_batches_tracked(tmp_path):
    model = build("resnet8").eval()
    save_file(stored(model), tmp_path / "mine.safetensors")
    again = load_pretrained("resnet8", tmp_path / "mine.safetensors")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert not again.training


def test_prefixes_of_the_file_become_the_networks_names(tmp_path):
    tensors = {k.replace("linear.", "fc."): v for k, v in stored(build("resnet20_b")).items()}
    save_file(tensors, tmp_path / "b.safetensors")
    assert set(weights("resnet20_b", tmp_path / "b.safetensors")) == set(stored(build("resnet20_b")))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".PTH", ".bin"])
def test_a_pickle_is_refused_unopened(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StoredFileError, match=r"never is.*convert it once: safetensors"):
        load_pretrained("resnet20", path)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_with_another_name_is_refused_too(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(StoredFileError, match="no readable safetensors"):
        load_pretrained("resnet20", path)


def test_missing_truncated_and_strange_files_say_what_is_wrong(tmp_path):
    model = build("resnet8")
    good = tmp_path / "good.safetensors"
    save_file(stored(model), good)
    with pytest.raises(StoredFileError, match="does not exist"):
        load_pretrained("resnet8", tmp_path / "absent.safetensors")
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:-1000])
    with pytest.raises(StoredFileError, match="no readable safetensors"):
        load_pretrained("resnet8", tmp_path / "short.safetensors")
    with pytest.raises(StoredFileError, match="lack layer1.1"):
        load_pretrained("resnet20", good)
    with pytest.raises(StoredFileError, match="wrong shapes: conv1.weight"):
        load_pretrained("resnet_digits", good)
    save_file({**stored(model), "extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(StoredFileError, match="hold unknown extra"):
        load_pretrained("resnet8", tmp_path / "more.safetensors")


def test_a_nan_is_found_before_anything_is_changed():
    model, other = build("resnet8"), stored(build("resnet8"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other["linear.weight"] = other["linear.weight"].index_fill(0, torch.tensor([3]), float("nan"))
    with pytest.raises(StoredFileError, match=r"mine hold NaN or infinite values in linear.weight"):
        fill(model, other, "mine")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_networks_without_trained_weights_say_which_have_some(tmp_path):
    for path in (None, tmp_path):
        with pytest.raises(UnknownNameError, match="resnet44"):
            load_pretrained("vgg16", path)
    with pytest.raises(StoredFileError, match="does not exist"):
        load_pretrained("resnet20", tmp_path)
