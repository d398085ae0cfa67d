"""Save and load: exact, whole or not at all, and nothing damaged or pickled is ever opened."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.errors import InputError, StoredFileError, SurgeryError
from prunus.graph import plan_from, trace
from prunus.surgery import apply, check_writable, load, plans_of, read_manifest, read_plans, read_weights, save, store
from prunus.types import Plan

from .helpers import SmallNet, assert_unchanged, lively, state


def small_net(seed: int = 0) -> SmallNet:
    """What a user's module:factory looks like."""
    return lively(SmallNet(), seed)


def halved(model: nn.Module) -> Plan:
    graph = trace(model, torch.randn(2, 3, 8, 8))
    return plan_from(graph, {group.name: range(0, group.size, 2) for group in graph.groups})


@pytest.fixture
def cut() -> SmallNet:
    model = small_net().eval()
    return apply(apply(model, halved(model)), halved(apply(model, halved(model))))


@pytest.fixture
def folder(cut: SmallNet, tmp_path: Path) -> Path:
    return save(cut, tmp_path / "saved")


def assert_same(left: nn.Module, right: nn.Module) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, tensor in left.state_dict().items():
        other = right.state_dict()[name]
        assert tensor.dtype == other.dtype, name
        assert torch.equal(tensor, other), name


# ------------------------------------------------------------------------------------------------------- round trip


def test_a_bias_that_makes_up_for_what_was_removed_comes_back(tmp_path: Path):
    dense = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    cut = apply(dense, plan_from(trace(dense, torch.randn(2, 3)), {"0": range(4)}))
    cut[2].bias = nn.Parameter(torch.tensor([0.5, -1.0]))
    loaded = load(save(cut, tmp_path), dense)
    assert_same(loaded, cut)
    assert dense[2].bias is None
    wrong = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False))
    with pytest.raises(SurgeryError, match=r"2\.bias"):
        load(tmp_path, wrong)


def test_two_rounds_of_pruning_come_back_exactly(cut: SmallNet, folder: Path):
    dense = small_net(seed=9)
    before = state(dense)
    loaded = load(folder, dense)
    assert_same(loaded, cut)
    assert_unchanged(dense, before)
    assert plans_of(loaded) == plans_of(cut) == read_plans(folder)
    assert len(plans_of(loaded)) == 2
    assert loaded.conv1.out_channels == cut.conv1.out_channels == 2
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), cut(x))


def test_trained_weights_are_saved_not_those_of_the_plan(cut: SmallNet, tmp_path: Path):
    with torch.no_grad():
        cut.conv1.weight.add_(1.0)
    assert_same(load(save(cut, tmp_path / "tuned"), small_net()), cut)


def test_dtypes_are_kept_and_a_meta_model_will_do(cut: SmallNet, tmp_path: Path):
    folder = save(cut.half(), tmp_path / "half")
    loaded = load(folder, small_net())
    assert loaded.conv1.weight.dtype is torch.float16
    assert loaded.bn1.num_batches_tracked.dtype is torch.int64
    assert_same(load(folder, SmallNet().to("meta")), cut)


def test_an_uncut_model_is_saved_too(tmp_path: Path):
    model = small_net()
    assert_same(load(save(model, tmp_path / "dense"), small_net(seed=3)), model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.output = nn.Linear(6, 10, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("fleeting", torch.arange(3.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.embedding(tokens))


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path):
    model = Tied()
    folder = save(model, tmp_path / "tied")
    assert set(read_weights(folder / store.WEIGHTS)) == {"embedding.weight", "fleeting"}
    loaded = load(folder, Tied())
    assert loaded.output.weight is loaded.embedding.weight
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)


def test_the_zoo_builds_its_own_dense_models(tmp_path: Path):
    from prunus.zoo import build

    model = build("lenet5", classes=7).eval()
    graph = trace(model, torch.randn(2, 1, 28, 28))
    cut = apply(model, plan_from(graph, {graph.groups[0].name: range(5)}))
    folder = save(cut, tmp_path / "lenet", factory="zoo:lenet5", arguments={"classes": 7})
    assert_same(load(folder), cut)


def test_another_factory_is_only_called_when_trusted(cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "users_nets.py").write_text(f"from {__name__} import small_net\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = save(cut, tmp_path / "saved", factory="users_nets:small_net", arguments={"seed": 4})
    with pytest.raises(InputError, match=r"trust_factory=True; or build the model yourself"):
        load(folder)
    assert_same(load(folder, trust_factory=True), cut)


def test_the_manifest_describes_what_is_stored(cut: SmallNet, folder: Path):
    manifest = read_manifest(folder)
    assert manifest.class_name.endswith("SmallNet")
    assert manifest.parameters == sum(p.numel() for p in cut.parameters())
    assert manifest.bytes == sum(t.numel() * t.element_size() for t in cut.state_dict().values())
    assert manifest.macs == plans_of(cut)[-1].after.macs
    assert manifest.torch == torch.__version__


# ------------------------------------------------------------------------------------------------ whole or not at all


def test_saving_again_replaces_the_folder_and_keeps_other_files(cut: SmallNet, folder: Path):
    (folder / "notes.txt").write_text("mine")
    with torch.no_grad():
        cut.conv1.weight.zero_()
    save(cut, folder)
    assert_same(load(folder, small_net()), cut)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("stage", ["_write", "replace_folder"])
def test_a_failure_while_saving_leaves_the_old_folder(cut, folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def failing(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store, stage, failing)
    with pytest.raises(OSError, match="disk full"):
        save(cut, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_a_folder_of_something_else_is_not_touched(cut: SmallNet, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(InputError, match="give a new or empty folder"):
        save(cut, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unwritable_folder_is_reported_before_work_starts(cut: SmallNet, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    for target in (file, file / "below", Path("/proc/nowhere/model")):
        with pytest.raises(InputError, match=r"cannot write to .*give a folder that can be written"):
            save(cut, target)
        with pytest.raises(InputError, match="cannot write to"):
            check_writable(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_reported(cut: SmallNet, tmp_path: Path):
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot write to"):
        save(cut, parent / "model")


def test_what_cannot_be_stored_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"'conv1\.weight' has no values"):
        save(SmallNet().to("meta"), tmp_path / "meta")
    with pytest.raises(InputError, match=r"plain JSON data"):
        save(SmallNet(), tmp_path / "arguments", factory="zoo:lenet5", arguments={"f": print})
    with pytest.raises(InputError, match=r"must be 'zoo:NAME' or 'package\.module:function'"):
        save(SmallNet(), tmp_path / "factory", factory="lenet5")
    with pytest.raises(InputError, match="got str"):
        save("model", tmp_path / "string")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [store.WEIGHTS, store.PLAN_FILE])
def test_a_truncated_file_is_named_with_both_hashes(folder: Path, name: str):
    file = folder / name
    expected = read_manifest(folder).files[name]["sha256"]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(StoredFileError, match=rf"{name} was changed.*{store.sha256(file)}.*{expected}.*cut short"):
        load(folder, small_net())


@pytest.mark.parametrize("name", [store.WEIGHTS, store.PLAN_FILE, store.MANIFEST])
def test_a_single_changed_byte_is_found(folder: Path, name: str):
    file = folder / name
    data = bytearray(file.read_bytes())
    index = data.rindex(b"1") if name != store.WEIGHTS else len(data) - 3
    data[index] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(StoredFileError, match=f"{name} was changed after it was saved"):
        load(folder, small_net())


@pytest.mark.parametrize("name", [store.WEIGHTS, store.PLAN_FILE, store.MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(StoredFileError, match=name):
        load(folder, small_net())


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"sha256": 1, "format": "other/2"}'])
def test_a_malformed_manifest_is_refused(folder: Path, text: str):
    (folder / store.MANIFEST).write_text(text)
    with pytest.raises(StoredFileError, match=r"manifest\.json"):
        load(folder, small_net())


def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path):
    opened = tmp_path / "opened"
    harmful = type("Harmful", (), {"__reduce__": lambda self: (Path.touch, (opened,))})()
    for name in ("model.pt", "model.pth", "model.pkl", "model.bin", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(harmful))
        with pytest.raises(StoredFileError, match=r"safetensors\.torch\.save_file"):
            read_weights(path)
    torch.save({"weight": torch.ones(1)}, tmp_path / "zip.safetensors")
    with pytest.raises(StoredFileError, match="is a pickle, whatever its name says"):
        read_weights(tmp_path / "zip.safetensors")
    with pytest.raises(StoredFileError, match=r"safetensors\.torch\.save_file"):
        load(tmp_path / "model.pt", small_net())
    assert not opened.exists()


def test_a_pickle_in_the_place_of_the_weights_is_refused_even_with_a_fitting_hash(folder: Path):
    file = folder / store.WEIGHTS
    file.write_bytes(pickle.dumps({"conv1.weight": [1.0]}))
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"][store.WEIGHTS] = {"sha256": store.sha256(file), "bytes": file.stat().st_size}
    manifest.pop("sha256")
    (folder / store.MANIFEST).write_text(json.dumps({**manifest, "sha256": store._digest(manifest)}))
    with pytest.raises(StoredFileError, match="is a pickle"):
        load(folder, small_net())


def test_loading_says_what_is_not_there(tmp_path: Path):
    with pytest.raises(StoredFileError, match="does not exist; expected a folder that prunus"):
        load(tmp_path / "nothing")
    with pytest.raises(StoredFileError, match=r"holds no manifest\.json"):
        load(tmp_path)


def test_another_model_does_not_fit(folder: Path, cut: SmallNet, tmp_path: Path):
    with pytest.raises(InputError, match=r"does not say how to build the dense .*SmallNet: pass it as model="):
        load(folder)
    with pytest.raises(SurgeryError, match=r"no tensor .*was the plan made for another model"):
        load(folder, nn.Linear(3, 4))
    with pytest.raises(SurgeryError, match="to the model it was made for, once"):
        load(folder, cut)
    dense_folder = save(small_net(), tmp_path / "dense")
    with pytest.raises(SurgeryError, match=r"do not fit the dense model.*bn1\.bias is \(2,\) in the model and \(6,\)"):
        load(dense_folder, cut)
    with pytest.raises(SurgeryError, match=r"the folder has no weight.*the model has no bn1"):
        load(dense_folder, nn.PReLU())
