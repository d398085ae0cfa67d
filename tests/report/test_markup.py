from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.report.markup import Html, join, table, tag


@settings(deadline=None)
@given(st.text(), st.text())
def test_text_comes_back_as_it_went_in(page, content, attribute):
    clean = "".join(c for c in content if c not in "\r\x00")
    value = "".join(c for c in attribute if c not in "\r\x00")
    found = page(tag("p", {"title": value}, clean))
    assert found.text == clean
    assert found.all("p") == [{"title": value}]


def test_markup_is_kept_and_text_is_escaped():
    assert join((Html("<b>x</b>"), "<b>")) == "<b>x</b>&lt;b&gt;"


def test_attributes_that_are_none_or_false_are_left_out():
    assert tag("details", {"open": True, "hidden": False, "id": None}) == "<details open></details>"


def test_first_cell_of_a_row_is_its_header(page):
    found = page(table("c", ["a", "b"], [["x", 1]], numeric=[1]))
    assert [a.get("scope") for a in found.all("th")] == ["col", "col", "row"]
    assert found.all("td") == [{"class": "number"}]
