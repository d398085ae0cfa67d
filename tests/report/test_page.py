from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import InputError
from prunus.report import render_html
from prunus.report.page import SECTIONS

NOT_MEASURED = {
    "before-after": "Before and after",
    "tradeoff": "Accuracy against MACs",
    "speed": "Speed",
    "widths": "Widths per layer",
    "learning": "Learning curve",
    "robustness": "Robustness",
    "calibration": "Calibration",
    "uncertainty": "Uncertainty",
    "sensitivity": "Sensitivity to the input",
    "fairness": "Accuracy per class",
    "energy": "Energy and CO₂",
    "method": "Method",
}


def test_page_is_well_formed_and_has_every_section(report, page):
    found = page(render_html(report))
    assert [attributes["id"] for attributes in found.all("section")] == [anchor for anchor, _, _ in SECTIONS]
    assert len(found.all("h1")) == 1
    assert found.all("html") == [{"lang": "en"}]


def test_a_complete_report_leaves_nothing_unmeasured(report, page):
    assert "not measured" not in page(render_html(report)).text


def test_page_asks_for_nothing_from_outside(report, page):
    source = render_html(report)
    found = page(source)
    for _, attributes in found.elements:
        assert not {"src", "srcset", "data", "poster", "action", "xlink:href"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert not {"link", "img", "iframe", "object", "embed", "image", "use"} & {tag for tag, _ in found.elements}
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|import\(", source)
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_page_is_small(report):
    assert len(render_html(report).encode()) < 1_500_000


def test_links_lead_to_sections_of_the_page(report, page):
    found = page(render_html(report))
    ids = {attributes.get("id") for _, attributes in found.elements}
    targets = [str(attributes["href"])[1:] for attributes in found.all("a")]
    assert len(targets) == len(SECTIONS)
    assert set(targets) <= ids


def test_numbers_of_the_report_are_on_the_page(report, page):
    text = page(render_html(report)).text
    for written in (
        "93.19%",  # accuracy, and its Wilson interval
        "92.68% to 93.67%",
        "−0.18 points",
        "59.96\u00a0M",
        "−52.22%",
        "1.53×",
        "4.19\u00a0ms",
        "layer3.8.conv1",
        "modelled",
        "resnet.py:118",
        "prunus run examples/cifar10_resnet56.yaml --seed 0",
        "2.13.0+cpu",
        "temperature: 4.0",
    ):
        assert written in text, written


def test_tables_have_captions_and_headers(report, page):
    found = page(render_html(report))
    tables = len(found.all("table"))
    assert tables >= 8
    assert len(found.all("caption")) == tables
    assert {a.get("scope") for a in found.all("th")} == {"col", "row"}


def test_every_chart_has_words_for_those_who_do_not_see_it(report, page):
    for attributes in page(render_html(report)).all("svg"):
        assert attributes.get("aria-hidden") == "true" or len(str(attributes.get("aria-label"))) > 20


def coordinates(found: Any) -> Iterator[float]:
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            if name in {"x", "y", "x1", "x2", "y1", "y2", "width", "height"} and tag != "meta":
                yield float(value)
            if name == "d":
                yield from map(float, re.findall(r"-?[\d.]+|nan|inf", value))


def test_coordinates_are_finite_and_inside_their_drawings(report, page):
    numbers = list(coordinates(page(render_html(report))))
    assert len(numbers) > 2000
    assert all(math.isfinite(n) and -40 <= n <= 1000 for n in numbers)


def test_charts_are_drawn_for_desk_and_phone(report, page):
    found = page(render_html(report))
    widths = [float(str(a["width"])) for a in found.all("svg") if "aria-label" in a]
    assert max(widths) > 900
    assert sum(w <= 340 for w in widths) >= len(widths) / 2


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "&lt;"]
)
def test_text_of_the_report_never_becomes_markup(report, page, attack):
    clean = page(render_html(report))

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(v) for key, v in value.items()}
        if isinstance(value, list):
            return [poisoned(v) for v in value]
        return value + attack if isinstance(value, str) and value != "prunus-report/1" else value

    dirty = page(render_html(poisoned(report)))
    assert [tag for tag, _ in dirty.elements if tag in ("script", "img", "style", "b")] == ["style", "script"]
    assert attack in dirty.text
    assert len(dirty.all("section")) == len(clean.all("section"))


def test_keys_of_the_report_never_become_markup(report, page):
    report["repro"]["environment"] = {"<img src=x>": "<b>", "cores": 2}
    found = page(render_html(report))
    assert not found.all("img")
    assert "<img src=x>" in found.text


def test_an_empty_report_says_what_is_not_measured(page):
    text = page(render_html({"schema": "prunus-report/1"})).text
    for name in NOT_MEASURED.values():
        assert f"{name}: not measured in this run." in text
    assert "has not measured a pruned model yet" in text


@pytest.mark.parametrize(
    "section", ["baseline", "init", "criterion", "structure", "execution", "finetune", "validation"]
)
@pytest.mark.parametrize("instead", [None, {}, [], "text", 3])
def test_a_missing_or_misshapen_section_leaves_the_rest(report, page, section, instead):
    report[section] = instead
    assert "93.19%" in page(render_html(report)).text


@pytest.mark.parametrize("panel", ["robustness", "calibration", "uncertainty", "sensitivity", "per_class"])
def test_a_panel_without_data_says_so_and_the_others_stay(report, page, panel):
    del report["validation"][panel]
    found = page(render_html(report))
    assert found.text.count("not measured in this run") == 1


def test_parts_of_a_panel_can_be_missing(report, page):
    robustness = report["validation"]["robustness"]
    robustness["pgd"] = robustness["pgd"][:1]
    del robustness["fgsm"]
    report["validation"]["calibration"]["dense"] = {}
    text = page(render_html(report)).text
    assert "FGSM (one gradient step): not measured in this run." in text
    assert "PGD (many gradient steps)" in text
    assert "Common corruptions" in text


def test_a_failed_run_says_where_and_why(report, page):
    report.update(status="failed", failed_step="validation", error="retention 0.91 is under the floor 0.99")
    report["validation"].update(status="failed", reason="retention 0.91 is under the floor 0.99")
    found = page(render_html(report))
    assert "The run failed at step “Validation”: retention 0.91 is under the floor 0.99" in found.text
    assert any(a.get("class") == "verdict lost" for a in found.all("div"))


def test_values_that_could_not_be_measured_are_dashes_with_the_reason(report, page):
    row = report["summary"]["table"][0]
    row["pruned"].update(value=None, how="the runtime is not installed", spread=None)
    found = page(render_html(report))
    assert any(a.get("title") == "the runtime is not installed" for a in found.all("span"))


def test_many_groups_are_drawn_without_names(report, page):
    report["summary"]["groups"] = [{"name": f"block{i}", "before": 64, "after": 32} for i in range(300)]
    found = page(render_html(report))
    assert "300 of 300 groups were cut" in found.text


def test_another_schema_is_refused():
    with pytest.raises(InputError, match="prunus-report/1"):
        render_html({"schema": "other/3"})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "unit", "name", "bins"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_misshapen_value_breaks_the_page(stored, page, data):
    """Replace what stands somewhere in the report by anything that JSON can hold: the page is still whole."""

    def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
        children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
        for key, child in children:
            if at or key != "schema":
                yield (*at, key)
                yield from paths(child, (*at, key))

    report = copy.deepcopy(stored)
    *above, last = data.draw(st.sampled_from(sorted(paths(report), key=str)))
    holder: Any = report
    for key in above:
        holder = holder[key]
    holder[last] = data.draw(JUNK)
    found = page(render_html(report))
    assert len(found.all("section")) == len(SECTIONS)
