"""The run directory: checked before work, written in one step, held by one run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunus.errors import InputError, StoredFileError
from prunus.pipeline.directory import RunDirectory, digest, file_digest, plain


def test_a_file_in_the_way_is_an_error_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_an_error_before_any_work(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            RunDirectory(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = RunDirectory(tmp_path)
    directory.write_json("a.json", {"x": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        directory.write_json("a.json", {"x": 2})
    assert directory.read_json("a.json") == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(StoredFileError, match=r"a\.json"):
        RunDirectory(tmp_path).read_json("a.json")


def test_two_runs_cannot_hold_one_directory(tmp_path: Path):
    pytest.importorskip("fcntl")
    with RunDirectory(tmp_path).locked(), pytest.raises(InputError, match="in use"), RunDirectory(tmp_path).locked():
        pass
    with RunDirectory(tmp_path).locked():
        pass


def test_numbers_that_json_lacks_become_null():
    assert plain({"a": float("inf"), "b": [float("nan"), 1.5], 2: True}) == {"a": None, "b": [None, 1.5], "2": True}


def test_digests_of_folders_follow_names_and_contents(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    first = file_digest(tmp_path)
    (tmp_path / "a").write_text("2")
    second = file_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, file_digest(tmp_path)}) == 3
    assert digest([1, 2]) != digest([2, 1])
