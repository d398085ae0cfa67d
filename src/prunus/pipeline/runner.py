"""The nine steps in order: what is finished is kept, what failed stops the run, and the report is always written."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, MissingExtraError, PrunusError, StepFailed
from ..evaluation.state import seeded
from .directory import RunDirectory, digest, file_digest, plain
from .environment import environment, versions
from .loading import load_recipe
from .once import forget
from .preflight import preflight
from .recipe import Recipe
from .section import Section, Step
from .steps import STEPS
from .work import Work

logger = logging.getLogger("prunus.run")

SCHEMA = "prunus-report/1"
STATE, STATE_SCHEMA = "state.json", "prunus-state/1"
"""What a later call needs to know of finished steps: what decided them, their files' digests, their sections."""


@dataclass(frozen=True)
class Run:
    """A finished run: where its files are, and its report as plain data (see the file `report.json`)."""

    directory: Path
    report: Mapping[str, Any] = field(repr=False)

    @property
    def status(self) -> str:
        """`passed` when every step reached what it must."""
        return str(self.report["status"])

    def model(self) -> nn.Module:
        """The final model, cut and recovered, from its files."""
        recipe = load_recipe(self.directory / "recipe.yaml")
        return Work(recipe, RunDirectory(self.directory), dict(self.report)).final()


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    run_dir: str | Path | None = None,
    from_step: int | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> Run:
    """Go the whole way from a recipe to a smaller model that is verified, measured, exported and reported.

    Runs the nine steps of a pruning process (train or load, initialise, criterion, structure, execute, fine-tune,
    validate, measure on the device, document). Every step writes its section of `report.json` in the run directory.
    A run that was interrupted, also by SIGKILL and also in the middle of training, goes on where it was when it is
    started again with the same recipe and directory; steps whose inputs changed are done again.

    Args:
        recipe: path of a YAML file, plain data, or a `Recipe`.
        run_dir: the run directory; `runs/<name of the recipe>` when absent.
        from_step: do this step (1 to 9) and all later ones again; the earlier ones must be finished.
        overrides: `key.sub=value` strings, applied to the recipe.
        progress: show progress of training on the terminal.
        command: the command line to record, for the report.

    Returns:
        The finished run.

    Raises:
        RecipeError: a field of the recipe is wrong; nothing was done.
        InputError: the run directory cannot be written, or `from_step` cannot be resumed from; nothing was done.
        StepFailed: a step did not reach what it must; `report.json` and `report.md` say which condition.
        PrunusError: anything else that went wrong inside a step; the report names the step.
    """
    checked = load_recipe(recipe, overrides)
    if from_step is not None and not 1 <= from_step <= len(STEPS):
        raise InputError(f"from_step is {from_step}: it must be 1 to {len(STEPS)}")
    directory = RunDirectory(run_dir if run_dir is not None else Path("runs") / _name(recipe, checked))
    with directory.locked(), directory.logged(), _threads(checked.threads) as threads:
        going = _Going(checked, directory, progress)
        going.prepare(threads, list(command or ()))
        going.check_start(from_step)
        return going.through(from_step)


def _name(source: object, recipe: Recipe) -> str:
    if isinstance(source, (str, Path)):
        return Path(source).stem
    text = recipe.title or f"{recipe.model.name}-{recipe.data.spec}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    """The run's number of torch threads, which is part of what makes its numbers repeat; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or os.cpu_count() or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


class _Going:
    """One call of `run`: the report so far, what is known of the steps done before, and what is done now."""

    def __init__(self, recipe: Recipe, directory: RunDirectory, progress: bool) -> None:
        self.recipe = recipe
        self.directory = directory
        self.report: dict[str, Any] = directory.read_json("report.json") or {}
        state = directory.read_json(STATE) or {}
        self.known: dict[str, dict[str, Any]] = state.get("steps", {}) if state.get("schema") == STATE_SCHEMA else {}
        self.work = Work(recipe, directory, self.report, progress)

    def prepare(self, threads: int, command: list[str]) -> None:
        """Check everything before any work, and write down recipe and environment."""
        if self.report and self.report.get("schema") != SCHEMA:
            raise InputError(f"{self.directory / 'report.json'} is no report of this program: choose another directory")
        preflight(self.work)
        import yaml

        surroundings = {"versions": versions(), "environment": environment(threads), "command_line": command}
        self.directory.write_text(
            "recipe.yaml", yaml.safe_dump(self.recipe.plain(), sort_keys=False, allow_unicode=True)
        )
        self.directory.write_json("environment.json", surroundings)
        self.work.surroundings = surroundings
        created = self.report.get("created") or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.report.clear()  # sections come back one by one, as their steps are found to stand
        self.report.update(
            schema=SCHEMA,
            title=self.recipe.title or f"{self.recipe.model.name} on {self.recipe.data.spec}",
            created=created,
            status="running",
            failed_step=None,
            error=None,
            run={"directory": str(self.directory.path), "seconds": 0.0},
        )
        logger.info("run directory %s", self.directory.path)

    def check_start(self, from_step: int | None) -> None:
        """Refuse to resume where earlier steps are missing or were made from other inputs."""
        for step in STEPS[: (from_step or 1) - 1]:
            why = self._why_again(step)
            if why:
                raise InputError(
                    f"cannot start at step {from_step}: step {step.number} ({step.key}) has to be done first, because "
                    f"{why}; use --from-step {step.number}, or leave it out"
                )

    def through(self, from_step: int | None) -> Run:
        """Do what is not done yet."""
        for step in STEPS:
            why = self._why_again(step)
            if from_step is not None and step.number >= from_step:
                why = why or f"--from-step {from_step} asks for it"
                forget(self.work, step.key)
            if not why:
                logger.info("step %d %s: done before", step.number, step.title)
                self.report.update(self.known[step.key]["top"])
                self.report[step.key] = self.known[step.key]["section"]
                continue
            self.known.pop(step.key, None)
            self._save()
            logger.info("step %d %s: starts (%s)", step.number, step.title, why)
            self._do(step)
        self._finish("passed")
        return Run(self.directory.path, self.report)

    # ------------------------------------------------------------------------------------------------- one step

    def _do(self, step: Step) -> None:
        began = time.perf_counter()
        self.work.inputs_hash = digest(self._inputs(step))
        try:
            with seeded(self.recipe.seed + step.number):
                section = step.function(self.work)
        except PrunusError as error:
            self._stop(step, Section(), str(error), time.perf_counter() - began)
            raise
        except Exception as error:
            self._stop(step, Section(), f"{type(error).__name__}: {error}", time.perf_counter() - began)
            raise
        seconds = time.perf_counter() - began
        if section.failed:
            reason = "; ".join(
                f"{check.name}: {check.detail}" if check.detail else check.name for check in section.failed
            )
            self._stop(step, section, reason, seconds)
            raise StepFailed(
                f"step {step.number} ({step.title}) failed: {reason}. The report is in {self.directory.path}"
            )
        self._write(step, section, "skipped" if section.skipped else "passed", section.skipped, seconds)
        self._remember(step, section)
        logger.info(
            "step %d %s: %s in %.1f s", step.number, step.title, "skipped" if section.skipped else "passed", seconds
        )

    def _write(self, step: Step, section: Section, status: str, reason: str, seconds: float) -> None:
        header = {
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 3),
            "seed": self.recipe.seed,
            "inputs_hash": self.work.inputs_hash,
        }
        self.report.update(plain(section.top))
        self.report[step.key] = plain({**section.values, **header, **section.header()})
        self._save()

    def _remember(self, step: Step, section: Section) -> None:
        digests = {path: file_digest(self.directory / path) for path in section.artefacts.values()}
        inputs = self._inputs(step)
        self.known[step.key] = {
            "inputs": inputs,
            "inputs_hash": digest(inputs),
            "digests": digests,
            "stamp": time.time_ns(),
            "section": self.report[step.key],
            "top": plain(section.top),
        }
        self.directory.write_json(STATE, {"schema": STATE_SCHEMA, "steps": self.known})
        shutil.rmtree(self.work.checkpoints(step.key), ignore_errors=True)

    def _stop(self, step: Step, section: Section, reason: str, seconds: float) -> None:
        self._write(step, section, "failed", reason, seconds)
        for later in STEPS[step.number :]:
            header = {"status": "skipped", "reason": f"not reached: step {step.number} ({step.title}) failed"}
            self.report[later.key] = {
                **header,
                "seconds": 0.0,
                "seed": self.recipe.seed,
                "inputs_hash": "",
                "artefacts": {},
            }
        self.report.update(failed_step=step.key, error=reason)
        logger.error("step %d %s: failed: %s", step.number, step.title, reason)
        self._finish("failed")

    # ------------------------------------------------------------------------------------------ what decides a step

    def _inputs(self, step: Step) -> dict[str, Any]:
        inputs: dict[str, Any] = {path: _field(self.recipe, path) for path in step.recipe}
        inputs.update({f"step {key}": self._token(key, step.reads_numbers) for key in step.needs})
        if step.number == 1:
            inputs.update(self.work.sources())
        return plain(inputs)

    def _token(self, key: str, numbers: bool) -> Any:
        """What a later step takes from a step: its files where it has any, else what decided it; or all it reported."""
        known = self.known.get(key)
        if not known:
            return None
        if numbers:
            return known["stamp"]
        return digest(known["digests"]) if known["digests"] else known["inputs_hash"]

    def _why_again(self, step: Step) -> str:
        """Why the step has to be done; empty when its results stand."""
        known = self.known.get(step.key)
        if not known:
            return "not done yet"
        inputs = self._inputs(step)
        changed = [
            _said(name, known["inputs"].get(name), value)
            for name, value in inputs.items()
            if known["inputs"].get(name) != value
        ]
        if changed or digest(inputs) != known["inputs_hash"]:
            return ", ".join(changed) or "its inputs changed"
        for path, was in known["digests"].items():
            if not (self.directory / path).exists():
                return f"its file {path} is gone"
            if file_digest(self.directory / path) != was:
                return f"its file {path} was changed"
        return ""

    # ----------------------------------------------------------------------------------------------------- writing

    def _save(self) -> None:
        self.report["run"]["seconds"] = round(
            sum(
                float(section.get("seconds") or 0)
                for section in map(self.report.get, (s.key for s in STEPS))
                if section
            ),
            3,
        )
        self.directory.write_json("report.json", self.report)

    def _finish(self, status: str) -> None:
        """The last writing of the report, and the pages made from it; a page that fails must not hide the result."""
        self.report["status"] = status
        self._save()
        from ..report import render, render_markdown

        self.directory.write_text("report.md", render_markdown(self.report))
        if not self.recipe.report.html:
            return
        try:
            render(self.directory.path)
        except MissingExtraError as error:
            logger.warning("no HTML report: %s", error)
        except Exception:
            if status == "passed":
                raise
            logger.exception("the HTML report could not be made")


def _said(name: str, was: Any, now: Any) -> str:
    return f"{name} gave something else" if name.startswith("step ") else f"{name} was {was!r} and is {now!r}"


def _field(recipe: Recipe, path: str) -> Any:
    value: Any = recipe.plain()
    for key in path.split("."):
        value = value[key]
    return value
