"""`prunus methods`: the table fits where it is read, and says what the cards say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prunus.cli import main
from prunus.cli.methods import NARROW
from prunus.cli.output import table
from prunus.methods import card_of, methods


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["methods", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_square_brackets_are_text_and_no_markup(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "[n, c]" in card_of("hrank").formula
    assert card_of("hrank").formula in said(capsys, "hrank")
    assert [str(cell) for cell in table("t", ("a",), [("x[i]",)]).columns[0].cells] == ["x[i]"]


def test_what_another_program_reads_has_one_line_per_method_with_its_paper(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = said(capsys).splitlines()
    for name, card in methods().items():
        (line,) = [line for line in lines if f" {name} " in line]
        assert card.specification in line
        assert card.paper.rpartition("; ")[2][:40] in line


def test_a_narrow_terminal_gets_fewer_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = said(capsys, "--where", "level=stripe")
    assert all(name in text for name in NARROW)
    assert "paper" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "prunus", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "prunus")
