"""Names become sources; wrong names and arguments say what works."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.data import SOURCES, blobs, load
from prunus.errors import InputError, StoredFileError, UnknownNameError


def test_an_unknown_name_lists_what_works():
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'") as caught:
        load("cifar-10")
    for usage in (*(s.usage for s in SOURCES.values()), "package.module:factory"):
        assert usage in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("npz", {}, "write npz:PATH"),
        ("folder:", {}, "write folder:PATH"),
        ("digits:8", {}, "write digits"),
        ("digits", {"validation": 1.0}, "validation=1.0"),
        ("digits", {"validation": -0.1}, "validation=-0.1"),
        ("digits", {"limit": 0}, "limit=0"),
    ],
)
def test_wrong_arguments_say_what_works(spec, options, says):
    with pytest.raises(InputError, match=says):
        load(spec, **options)


def test_limit_takes_at_most_so_many_of_each_split():
    source = load("digits", limit=200)
    assert [len(s) for s in source.splits.values()] == [200, 180, 200]
    assert set(source.train.targets.bincount().tolist()) <= {19, 20, 21}


def test_a_missing_data_folder_says_how_to_name_one(tmp_path, monkeypatch):
    with pytest.raises(StoredFileError, match=r"root names .*absent, which is not a folder"):
        load("mnist", root=tmp_path / "absent")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "gone"))
    with pytest.raises(StoredFileError, match=r"PRUNUS_DATA names .*gone"):
        load("mnist")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    with pytest.raises(StoredFileError, match="mnist.npz does not exist"):
        load("mnist")
    monkeypatch.delenv("PRUNUS_DATA")
    monkeypatch.setattr("prunus.data.root._BESIDE_CHECKOUT", tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoredFileError, match="set PRUNUS_DATA"):
        load("mnist")


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (1, 28, 28)])
def test_blobs_have_any_shape_and_hang_on_the_seed(shape):
    source = blobs(shape, classes=7, samples=(70, 14, 21))
    assert source.train.inputs.shape == (70, *shape)
    assert source.train.inputs.dtype == torch.uint8
    assert source.test.targets.bincount().tolist() == [3] * 7
    assert blobs(shape, 7, (70, 14, 21)).hashes == source.hashes
    assert blobs(shape, 7, (70, 14, 21), seed=1).hashes["train"] != source.hashes["train"]
    assert len(set(source.hashes.values())) == 3


def test_a_three_layer_network_tells_blobs_apart_in_seconds():
    """What makes blobs fit for pruning tests: there is an accuracy to lose."""
    source = load("blobs")
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(4):
        for x, y in source.train.batches(32, shuffle=True, epoch=epoch):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    (x, y) = next(source.test.batches(len(source.test)))
    assert (model(x).argmax(1) == y).float().mean() > 0.95
