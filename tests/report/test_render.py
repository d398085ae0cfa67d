from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunus.errors import InputError, StoredFileError
from prunus.report import render, render_html


def test_run_directory_gets_its_page(report, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    target = render(tmp_path)
    assert target == tmp_path / "report.html"
    assert target.read_text(encoding="utf-8") == render_html(report)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]  # no temporary file is left


def test_file_and_mapping_give_the_same_page(report, tmp_path):
    stored = tmp_path / "report.json"
    stored.write_text(json.dumps(report), encoding="utf-8")
    assert render(stored, tmp_path / "a.html").read_bytes() == render(report, tmp_path / "b.html").read_bytes()


def test_mapping_needs_a_file_to_write(report):
    with pytest.raises(InputError, match="out is missing"):
        render(report)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, StoredFileError, "cannot read the report"),
        ("{", StoredFileError, "is not JSON"),
        ("[]", InputError, "holds list"),
        ('{"schema": "x"}', InputError, "has schema 'x'"),
    ],
)
def test_what_is_no_report_is_refused_and_nothing_written(tmp_path, content, error, said):
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=said):
        render(tmp_path / "report.json")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_does_not_exist_is_named(report, tmp_path):
    with pytest.raises(InputError, match="cannot write out="):
        render(report, tmp_path / "missing" / "page.html")


def test_an_old_page_stays_when_the_new_one_cannot_be_made(report, tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(InputError):
        render({**report, "schema": None}, target)
    assert target.read_text(encoding="utf-8") == "old"


def test_style_and_script_are_files_of_the_package():
    import prunus.report

    folder = Path(str(prunus.report.__file__)).parent
    assert {"style.css", "page.js"} <= {file.name for file in folder.iterdir()}
