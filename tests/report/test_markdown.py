from __future__ import annotations

import json
import re

import pytest

from prunus.report import render_markdown
from prunus.report.markdown import PARTS

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def test_every_number_occurs_in_the_report(report):
    known = set(NUMBER.findall(json.dumps(report, ensure_ascii=False)))
    found = NUMBER.findall(render_markdown(report))
    assert len(found) > 300
    assert [n for n in found if n not in known] == []


def test_values_stand_in_full(report):
    text = render_markdown(report)
    assert "0.9319 fraction [0.926795, 0.936674] (95% Wilson interval, n = 10000)" in text
    assert "59961344" in text


def test_every_part_has_its_heading(report):
    headings = re.findall(r"^## (.*)$", render_markdown(report), re.MULTILINE)
    assert headings == [heading for heading, _ in PARTS]
    assert not any(NUMBER.search(heading) for heading in headings)


def test_an_empty_report_is_a_text_too():
    text = render_markdown({"schema": "prunus-report/1"})
    assert text.count("Not measured.") >= 4
    assert "Nothing was refused." in text
    assert not NUMBER.search(text)


@pytest.mark.parametrize("attack", ["a | b", "line\nbreak", "<script>"])
def test_text_of_the_report_stays_in_its_cell(report, attack):
    report["summary"]["refused"] = [{"what": attack, "reason": "r", "module": "m"}]
    text = render_markdown(report)
    row = next(line for line in text.splitlines() if line.endswith("| r | m | – | – | – |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert "<script>" not in text
