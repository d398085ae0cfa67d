"""Recipes: what is wrong is named by its path, with what was given and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prunus.errors import RecipeError
from prunus.pipeline import DEMO, Recipe, load_recipe

GOOD: dict[str, Any] = {"model": "zoo:lenet5", "data": "digits", "train": {"epochs": 1}, "prune": {"ratio": 0.5}}


def test_short_forms_and_defaults_are_filled_in():
    recipe = load_recipe(GOOD)
    assert recipe.model.name == "zoo:lenet5"
    assert recipe.data.spec == "digits"
    assert recipe.plain()["prune"] == {
        "criterion": "l2_norm",
        "parameters": {},
        "scope": "global",
        "normalise": "mean",
        "ratio": 0.5,
        "rounds": 1,
        "round_epochs": 0,
        "keep": [],
        "round_to": 1,
        "min_keep": 1,
        "max_ratio": 1.0,
        "calibration_batches": 8,
    }


def test_a_recipe_survives_being_written_and_read():
    recipe = load_recipe(DEMO)
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.plain()))) == recipe


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modle": "x"}, ["'modle' is unknown", "did you mean 'model'"]),
        ({"model": None}, ["'model' is None"]),
        ({"prune": {"ratio": 1.5}}, ["'prune.ratio' is 1.5", "less than 1"]),
        ({"prune": {"ratio": 0.5, "scope": "globl"}}, ["'prune.scope' is 'globl'", "'group' or 'global'"]),
        ({"prune": {"ratio": 0.5, "criterium": "x"}}, ["'prune.criterium' is unknown", "did you mean 'criterion'"]),
        ({"data": {"spec": "digits", "validation": 0}}, ["'data.validation' is 0", "greater than 0"]),
        ({"data": {"spec": "digits", "mean": [0.5]}}, ["'data'", "give both or none"]),
        ({"objective": {"target": {"flops": 0.5}}, "prune": {}}, ["'objective.target.flops'", "'macs'", "'max_drop'"]),
        ({"objective": {"target": {"macs": 0.5}}}, ["exactly one of objective.target and prune.ratio"]),
        ({"prune": {}}, ["exactly one of objective.target and prune.ratio", "neither"]),
        ({"objective": {"curve": [0.5, 2.0]}}, ["'objective.curve'", "[2.0]"]),
        ({"export": {"onnx": False, "int8": True}}, ["int8 is made from the ONNX file"]),
        ({"objective": {"target": {"latency": 0.5}}, "prune": {"rounds": 2}}, ["prune.rounds is 2", "latency"]),
        ({"seed": -1}, ["'seed' is -1"]),
    ],
)
def test_an_error_names_the_field_and_what_is_allowed(change, says):
    with pytest.raises(RecipeError) as caught:
        load_recipe({**GOOD, **change})
    for part in says:
        assert part in str(caught.value)


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe({**GOOD, "seed": -1, "prune": {"ratio": 7}, "extra": 1})
    assert all(f"'{path}'" in str(caught.value) for path in ("seed", "prune.ratio", "extra"))


def test_overrides_reach_any_depth_and_are_read_as_yaml():
    recipe = load_recipe(
        GOOD,
        [
            "prune.ratio=null",
            "objective.target={macs: 0.4}",
            "model.kwargs.classes=7",
            "data.limit=50",
            "train.lr=1e-2",
        ],
    )
    assert recipe.objective.target == {"macs": 0.4}
    assert recipe.model.name == "zoo:lenet5"
    assert recipe.model.kwargs == {"classes": 7}
    assert recipe.data.limit == 50
    assert recipe.prune.ratio is None


def test_overrides_leave_the_source_as_it_was():
    source = {"model": "zoo:lenet5", "data": "digits", "prune": {"ratio": 0.5}}
    load_recipe(source, ["prune.ratio=0.1"])
    assert source["prune"] == {"ratio": 0.5}


@pytest.mark.parametrize("override", ["prune.ratio", "=1", "prune..ratio=1", "prune.ratio=[1"])
def test_a_malformed_override_is_shown(override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(GOOD, [override])


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "not YAML"), ("- 1", "must hold fields"), ("!!python/object:os.system {}", "not YAML")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, says: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_weights_beside_the_recipe_become_absolute(tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "model": {"name": "zoo:lenet5", "weights": "w.safetensors"}}))
    assert load_recipe(path).model.weights == str(tmp_path.resolve() / "w.safetensors")


def test_a_recipe_object_is_taken_as_it_is():
    recipe = load_recipe(GOOD)
    assert isinstance(recipe, Recipe)
    assert load_recipe(recipe) == recipe
