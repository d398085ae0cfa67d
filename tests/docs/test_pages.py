"""The pages say what is so: examples run, links lead somewhere, and tables hold every name that there is."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from prunus.criteria import CRITERIA
from prunus.criteria.table import NEEDS
from prunus.evaluation import MEASURES
from prunus.evaluation import text as evaluation_text
from prunus.pipeline.recipe import MethodPart, Recipe
from prunus.report.page import SECTIONS
from prunus.training import Distillation, TrainingConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SPEC = importlib.util.spec_from_file_location("check_docs", REPOSITORY / "tools" / "check_docs.py")
assert SPEC is not None
assert SPEC.loader is not None
check_docs = importlib.util.module_from_spec(SPEC)
sys.modules.setdefault("check_docs", check_docs)  # dataclasses look their module up
SPEC.loader.exec_module(check_docs)


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run_and_links_lead_somewhere(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    text = page.read_text(encoding="utf-8")
    assert [*check_docs.dead_links(page, text), *check_docs.failing_blocks(page, text)] == []


# ---------------------------------------------------------------------------------------------------- command line


def commands() -> Iterator[tuple[str, str]]:
    """(page, line) of every prunus command in a shell block."""
    for page in PAGES:
        for block in re.findall(
            r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            yield from ((page.name, line) for line in block.splitlines() if line.strip().startswith("prunus "))


@pytest.fixture(scope="module")
def verbs() -> dict[str, Any]:
    from prunus.cli.app import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_in_shell_blocks_exist_with_their_options(verbs, page, line):
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in verbs, f"{page}: {line}"
    known = {name for parameter in verbs[words[0]].params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known, f"{page}: {line}"


def test_readme_lists_every_verb(verbs):
    table = re.findall(r"^\| `prunus (\w+)([^`]*)` \|", text_of("README.md"), re.MULTILINE)
    assert sorted(name for name, _ in table) == sorted(verbs)
    for name, rest in table:
        known = {option for parameter in verbs[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_make_targets_of_the_readme_exist():
    makefile = text_of("Makefile")
    targets = re.findall(r"^make (\w[\w-]*)", text_of("README.md"), re.MULTILINE)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


# ----------------------------------------------------------------------------------------------------- whole tables


def first_cells(text: str) -> list[str]:
    """The names in the first column of all tables of a page."""
    return [
        name for cell in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)
    ]


def test_every_criterion_is_listed():
    assert set(first_cells(text_of("docs/criteria.md"))) == set(CRITERIA)


def test_every_need_of_a_criterion_is_listed():
    assert set(NEEDS) <= set(first_cells(text_of("docs/adding_a_criterion.md")))


def section(text: str, heading: str) -> str:
    """A section of a page, up to the next heading of its level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_measure_is_listed_once():
    page = text_of("docs/measures.md")
    listed = first_cells(page.replace(section(page, "Language"), ""))
    assert sorted(listed) == sorted(MEASURES)


def test_measures_of_language_are_functions():
    listed = first_cells(section(text_of("docs/measures.md"), "Language"))
    assert len(listed) > 5
    assert not [name for name in listed if not callable(getattr(evaluation_text, name, None))]


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if "arXiv" in measure.source])
def test_sources_of_measures_are_those_of_the_code(name):
    row = next(line for line in text_of("docs/measures.md").splitlines() if line.startswith(f"| `{name}` |"))
    assert set(re.findall(r"\d{4}\.\d{5}", MEASURES[name].source)) <= set(re.findall(r"\d{4}\.\d{5}", row))


def test_every_section_of_the_report_is_described():
    text = text_of("docs/report.md").lower()
    for _, heading, _ in SECTIONS:
        words = "widths per layer" if heading == "Widths per layer" else heading.split(" to the ")[0].lower()
        assert words in text, heading


# ----------------------------------------------------------------------------------------------------------- recipes


def recipe_fields() -> Iterator[tuple[str, str, Any]]:
    """(section, field, default) of everything that a recipe may hold."""

    def plain(value: Any) -> Any:
        return (
            value.model_dump(mode="json")
            if isinstance(value, BaseModel)
            else list(value)
            if isinstance(value, tuple)
            else value
        )

    for name, field in Recipe.model_fields.items():
        yield "top level", name, ... if field.is_required() else plain(field.get_default(call_default_factory=True))
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            for inner, its in part.model_fields.items():
                default = its.get_default(call_default_factory=True)
                if isinstance(default, BaseModel):
                    yield from ((name, f"{inner}.{leaf}", value) for leaf, value in plain(default).items())
                else:
                    yield name, inner, ... if its.is_required() else plain(default)
    for inner, its in MethodPart.model_fields.items():
        yield "method", inner, ... if its.is_required() else plain(its.get_default(call_default_factory=True))
    for inner in dataclasses.fields(TrainingConfig):
        yield "train and recover", inner.name, plain(inner.default)
    for inner in dataclasses.fields(Distillation):
        yield "train and recover", inner.name, plain(inner.default)


SAID_IN_WORDS = {
    ("train and recover", "seed"),
    ("device", "threads"),
    ("data", "mean"),
    ("data", "std"),
    ("top level", "threads"),
}
"""Fields whose default is computed; the page says from what."""


@pytest.mark.parametrize(("section", "field", "default"), list(recipe_fields()))
def test_every_field_of_a_recipe_is_listed_with_its_default(section, field, default):
    parts = re.split(r"^## ", text_of("docs/recipes.md"), flags=re.MULTILINE)
    body = next(part for part in parts if part.lower().startswith(section))
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \| ([^|]*) \|", body, re.MULTILINE)
    said = [cell for names, cell in rows if field in re.findall(r"`([^`]+)`", names)]
    assert said, f"{section}: {field} is not listed"
    if (section, field) in SAID_IN_WORDS or (isinstance(default, dict) and default):
        return
    words = {None: {"none", "absent"}, ...: {"required"}}.get(default if default is None or default is ... else 0)
    if words:
        assert words & set(said)
    else:
        assert any(cell.startswith("`") and yaml.safe_load(cell.strip("`")) == default for cell in said), (field, said)


def test_recipe_page_names_no_field_that_does_not_exist():
    known = {field for _, field, _ in recipe_fields()}
    assert set(first_cells(text_of("docs/recipes.md"))) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_and_yaml_blocks_can_be_read(page):
    for kind, body in re.findall(
        r"^```(json|yaml)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        found = json.loads(body) if kind == "json" else yaml.safe_load(body)
        assert isinstance(found, dict)


def test_recipe_of_the_page_is_valid():
    from prunus.pipeline import load_recipe

    body = re.search(r"^```yaml\n(.*?)^```", text_of("docs/recipes.md"), re.MULTILINE | re.DOTALL)
    assert body is not None
    assert load_recipe(yaml.safe_load(body[1])).model.name == "zoo:resnet20"
