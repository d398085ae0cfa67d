"""A masked model comes back with its masks, on a fresh dense model, without pickles."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import InputError, StoredFileError, SurgeryError
from prunus.masks import masks_of
from prunus.zoo import build

X = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sparse():
    return prunus.sparsify(build("lenet5"), sparsity=0.7, scope="global", gradient="dense")


def test_masks_weights_and_their_gradient_come_back(sparse, tmp_path):
    prunus.save(sparse, tmp_path / "model", factory="zoo:lenet5")
    loaded = prunus.load(tmp_path / "model")
    assert all(torch.equal(mask, sparse.masks[name]) for name, mask in masks_of(loaded).items())
    assert masks_of(loaded).keys() == sparse.masks.keys()
    assert torch.equal(loaded.eval()(X), sparse.model.eval()(X))
    for model in (loaded, sparse.model):
        model(X).square().sum().backward()
    for (name, a), b in zip(loaded.named_parameters(), sparse.model.parameters()):
        assert torch.equal(a.grad, b.grad), name


def test_the_dense_model_that_is_given_stays_dense(sparse, tmp_path):
    prunus.save(sparse, tmp_path / "model")
    dense = build("lenet5")
    state = copy.deepcopy(dense.state_dict())
    loaded = prunus.load(tmp_path / "model", dense)
    assert masks_of(dense) == {}
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())
    assert torch.equal(loaded.eval()(X), sparse.model.eval()(X))
    with torch.device("meta"):
        on_meta = build("lenet5")
    assert torch.equal(prunus.load(tmp_path / "model", on_meta).eval()(X), sparse.model(X))


def test_a_finalized_model_is_an_ordinary_one(sparse, tmp_path):
    expected = sparse.finalize().eval()(X)
    prunus.save(sparse, tmp_path / "model", factory="zoo:lenet5")
    loaded = prunus.load(tmp_path / "model")
    assert masks_of(loaded) == {}
    assert torch.equal(loaded.eval()(X), expected)


def test_a_cut_model_with_masks_is_cut_and_masked_again(tmp_path):
    cut = prunus.prune(build("lenet5"), X, ratio=0.5)
    sparse = prunus.sparsify(cut.model, sparsity=0.5)
    prunus.save(sparse, tmp_path / "model", factory="zoo:lenet5")
    loaded = prunus.load(tmp_path / "model")
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in cut.model.parameters())
    assert torch.equal(loaded.eval()(X), sparse.model.eval()(X))


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    sparse = prunus.sparsify(Tied(), sparsity=0.5, layers="head")
    prunus.save(sparse, tmp_path / "model")
    loaded = prunus.load(tmp_path / "model", Tied())
    tokens = torch.arange(7)
    assert torch.equal(loaded(tokens), sparse.model(tokens))
    assert torch.equal(loaded.head.weight, loaded.embedding.weight)


def test_a_single_masked_layer_keeps_its_name(tmp_path):
    sparse = prunus.sparsify(nn.Linear(8, 8), sparsity="2:4")
    prunus.save(sparse, tmp_path / "model")
    assert prunus.surgery.read_manifest(tmp_path / "model").class_name == "torch.nn.modules.linear.Linear"
    assert torch.equal(prunus.load(tmp_path / "model", nn.Linear(8, 8)).weight, sparse.model.weight)


def test_a_module_that_has_an_attribute_model_is_saved_whole(tmp_path):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    outer = Outer()
    prunus.save(outer, tmp_path / "model")
    assert torch.equal(prunus.load(tmp_path / "model", Outer()).head.weight, outer.head.weight)


def test_another_model_or_a_damaged_file_is_refused(sparse, tmp_path):
    prunus.save(sparse, tmp_path / "model")
    with pytest.raises(SurgeryError, match="has no tensor"):
        prunus.load(tmp_path / "model", nn.Linear(2, 2))
    with pytest.raises(InputError, match="does not say how to build"):
        prunus.load(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StoredFileError, match="cut short"):
        prunus.load(tmp_path / "model", build("lenet5"))
