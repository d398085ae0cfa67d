"""Recipes that name a whole method: run by name, stored, reported; what does not fit is refused before any work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.errors import RecipeError, StepFailed
from prunus.pipeline import load_recipe
from prunus.pipeline.by_method import initial
from prunus.pipeline.directory import RunDirectory
from prunus.pipeline.work import Work

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits_snip.yaml"


def with_method(recipe: dict[str, Any], **method: Any) -> dict[str, Any]:
    plain = copy.deepcopy(recipe)
    plain["objective"] = {}
    del plain["recover"]
    return {**plain, "method": method}


@pytest.fixture(scope="module")
def snip(recipe, tmp_path_factory):
    """LeNet-300-100 on some digits, nine of ten weights removed before training."""
    plain = with_method(recipe, name="snip", amount=0.9, options={"batch_size": 64})
    plain["model"] = {"name": "zoo:lenet300", "kwargs": {"inputs": 64}}
    return prunus.run(plain, run_dir=tmp_path_factory.mktemp("snip") / "run", progress=False)


def test_a_method_that_masks_before_training_is_run_stored_and_reported(snip):
    report = snip.report
    assert snip.status == "passed"
    assert report["criterion"]["id"] == "snip"
    assert report["criterion"]["starts_with"] == "the untrained network"
    assert report["structure"]["kind"] == "unstructured"
    row = report["execution"]["rounds"][-1]
    assert row["density"] == pytest.approx(0.1, abs=1e-3)
    assert row["masked_weights"] == 64 * 300 + 300 * 100 + 100 * 10
    assert report["finetune"]["status"] == "skipped"
    assert report["summary"]["zeros"] == row["masked_weights"] - round(row["masked_weights"] * row["density"])
    model = snip.model()
    assert sum(int((p == 0).sum()) for p in model.parameters()) == report["summary"]["zeros"]
    assert "snip" in (snip.directory / "report.md").read_text(encoding="utf-8")


def test_it_starts_from_the_weights_that_the_dense_network_started_from(snip, recipe, tmp_path):
    plain = {**load_recipe(snip.directory / "recipe.yaml").plain(), "train": {**recipe["train"], "epochs": 0}}
    plain["objective"] = {"floors": {"validation_accuracy": 1.0}}
    work = Work(load_recipe(plain), RunDirectory(tmp_path / "run"), {})
    with pytest.raises(StepFailed):  # after the dense network was stored
        prunus.run(plain, run_dir=tmp_path / "run", progress=False)
    dense = work.dense().state_dict()  # trained for no epoch
    assert all(torch.equal(value, dense[name]) for name, value in initial(work).state_dict().items())


def test_a_method_that_removes_units_reaches_a_budget_and_starts_from_the_dense_network(recipe, tmp_path):
    plain = with_method(recipe, name="lrp", options={"batches": 1}, training={**recipe["train"], "epochs": 1})
    plain["objective"] = {"target": {"macs": 0.5}}
    run = prunus.run(plain, run_dir=tmp_path / "run", progress=False)
    assert run.report["criterion"]["starts_with"] == "the dense network"
    assert run.report["structure"]["kind"] == "structured"
    assert run.report["execution"]["rounds"][-1]["achieved"] <= 0.5
    assert [row["met"] for row in run.report["budget"]] == [True]
    assert sum(p.numel() for p in run.model().parameters()) == run.report["summary"]["final"]["params"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "snop"}}, ["'method'", "snip"]),
        ({"method": {"name": "fpgm"}}, ["criterion", "prune.criterion"]),
        ({"method": {"name": "snip", "options": {"batch": 1}}}, ["'batch'", "batches, batch_size"]),
        ({"method": {"name": "snip", "training": {"epoch": 1}}}, ["'method'", "epoch"]),
        ({"method": {"name": "snip", "amount": 1.5}}, ["method.amount", "1.5"]),
        ({"method": "snip", "recover": {"epochs": 1}}, ["recover", "leave it out"]),
        ({"method": "snip", "prune": {"ratio": 0.5}}, ["prune (all but keep)"]),
        ({"method": {"name": "lrp", "amount": 0.5}, "objective": {"target": {"macs": 0.5}}}, ["at most one"]),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(recipe, tmp_path, changes, words):
    plain = {**with_method(recipe, name="snip"), **changes}
    with pytest.raises(RecipeError) as refused:
        prunus.run(plain, run_dir=tmp_path / "run", progress=False)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert not (tmp_path / "run" / "dense").exists()


def test_the_example_is_a_valid_recipe_and_any_method_can_be_set():
    example = load_recipe(EXAMPLE, ["method.name=synflow", "method.options={rounds: 10}"])
    assert example.method is not None
    assert (example.method.name, example.method.amount, example.method.options) == ("synflow", 0.9, {"rounds": 10})
    short = load_recipe(
        {"model": "zoo:lenet300", "data": "digits", "train": {}, "method": "synflow"}, ["method.amount=0.5"]
    )
    assert short.method is not None
    assert (short.method.name, short.method.amount, short.method.start) == ("synflow", 0.5, "auto")
