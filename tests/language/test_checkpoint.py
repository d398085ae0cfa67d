"""Reading and writing shards: the safetensors library is the oracle, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus.errors import InputError, StoredFileError, UnknownNameError
from prunus.language.checkpoint import INDEX, SINGLE, open_checkpoint, read_header
from prunus.language.shards import write_shard

TENSORS = {
    "a": torch.randn(5, 3),
    "b": torch.randn(4, 2, 2).to(torch.bfloat16),
    "c": torch.arange(7),
    "d": torch.tensor(2.5, dtype=torch.float16),
    "e": torch.empty(0, 3),
    "f": torch.tensor([True, False]),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    return tmp_path


def test_reads_what_safetensors_wrote(folder):
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.entries) == set(TENSORS)
    assert checkpoint.bytes == sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    for name, tensor in TENSORS.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_rows_are_the_slice(folder):
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.rows("a", 1, 4), TENSORS["a"][1:4])
    assert torch.equal(checkpoint.rows("b", 3, 4), TENSORS["b"][3:])
    with pytest.raises(InputError, match="rows 1 to 6"):
        checkpoint.rows("a", 1, 6)
    with pytest.raises(UnknownNameError, match="'z'"):
        checkpoint.read("z")


def test_writes_what_safetensors_reads_and_copies_bytes(folder, tmp_path):
    entries = open_checkpoint(folder).entries
    given = {name: entries[name] if name in "bce" else TENSORS[name] for name in TENSORS}
    write_shard(tmp_path / "new.safetensors", given)
    for name, tensor in load_file(tmp_path / "new.safetensors").items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_a_write_that_fails_leaves_the_old_file(folder, monkeypatch):
    before = (folder / SINGLE).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_shard(folder / SINGLE, {"a": torch.zeros(2)})
    assert (folder / SINGLE).read_bytes() == before


def test_shards_follow_the_index(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"], "a": torch.zeros(1)}, tmp_path / "two.safetensors")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("a"), TENSORS["a"])
    assert torch.equal(checkpoint.read("b"), TENSORS["b"])


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"a": "../one.safetensors"}, "outside"),
        ({"a": "gone.safetensors"}, "gone.safetensors"),
        ({"z": "one.safetensors"}, "does not hold 'z'"),
        ([], "damaged"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, places, says):
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(StoredFileError, match=says):
        open_checkpoint(tmp_path)


def damaged(kind: str, whole: bytes) -> bytes:
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    if kind == "cut short":
        return whole[:-3]
    if kind == "header too long":
        return (10**9).to_bytes(8, "little") + whole[8:]
    if kind == "offsets past the end":
        header["a"]["data_offsets"] = [10**6, 10**6 + 60]
    if kind == "another size":
        header["a"]["shape"] = [50, 3]
    if kind == "unknown dtype":
        header["a"]["dtype"] = "F1"
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


@pytest.mark.parametrize(
    "kind", ["cut short", "header too long", "offsets past the end", "another size", "unknown dtype"]
)
def test_a_damaged_file_is_refused(folder, kind):
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(damaged(kind, whole))
    with pytest.raises(StoredFileError, match="no readable safetensors"):
        read_header(folder / SINGLE)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(InputError, match="holds neither"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StoredFileError, match="pickles"):
        open_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / SINGLE)
    with pytest.raises(StoredFileError, match="pickle"):
        open_checkpoint(tmp_path)
