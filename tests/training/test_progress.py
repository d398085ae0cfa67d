from __future__ import annotations

import io

from rich.console import Console

from prunus.training import EpochRecord
from prunus.training.progress import Bar, Lines, Silent, reporter_of

RECORD = EpochRecord(2, 20, 0.05, 0.5, 0.75, 1.0, 0.6, 0.7)


def tell(reporter) -> None:
    reporter.start(0)
    reporter.step(1, 5, 0.9, 0.5)
    reporter.epoch(RECORD, RECORD)
    reporter.note("stopped")
    reporter.stop()


def test_a_pipe_gets_one_line_per_epoch(capsys):
    reporter = reporter_of(True, 3, 30)
    assert isinstance(reporter, Lines)
    tell(reporter)
    out, err = capsys.readouterr()
    assert out == ""  # the output stream belongs to results
    assert err.splitlines() == [
        "epoch 2/3  loss 0.5000  accuracy 75.00%  validation 70.00% (best 70.00% in epoch 2)  lr 0.05  1.0 s",
        "stopped",
    ]


def test_no_progress_is_silence(capsys):
    reporter = reporter_of(False, 3, 30)
    assert type(reporter) is Silent
    tell(reporter)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar():
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=120), 3, 30)
    tell(bar)
    shown = screen.getvalue()
    assert "epoch 1/3" in shown
    assert "5/30" in shown
    assert "loss 0.9000" in shown
    assert "validation 70.00%" in shown


def test_without_validation_a_line_is_shorter():
    lines: list[str] = []
    Lines(3, lines.append).epoch(EpochRecord(1, 10, 0.1, 0.5, 0.75, 1.0), None)
    assert lines == ["epoch 1/3  loss 0.5000  accuracy 75.00%  lr 0.1  1.0 s"]
