"""`prunus run` and `prunus demo`: the whole pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .options import Json, Out
from .output import Output, shown, table

if TYPE_CHECKING:
    from ..pipeline import Recipe

Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="key.sub=value overrides a field of the recipe; repeat it.")
]
FromStep = Annotated[int | None, typer.Option(help="Do this step (1 to 9) and all later ones again.", min=1, max=9)]


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see examples/.", show_default=False)],
    out: Out = None,
    set_: Set = None,
    from_step: FromStep = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also fine-tune the dense model for as many steps, to compare with.")
    ] = False,
    json: Json = False,
) -> None:
    """Go the whole way from a recipe to a smaller model: nine steps, resumable, with a report.

    Started again with the same recipe and directory, a run goes on where it was.

    Example: prunus run examples/mnist_lenet5.yaml --set prune.criterion=random --out runs/random
    """
    overrides = [*(set_ or ()), *(["control=true"] if control else ())]
    _go(recipe, out, overrides, from_step, json)


def demo(
    out: Out = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.", min=0)] = 0,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train a small network on real handwritten digits, cut it to 40% of its MACs, verify, export and report.

    Takes a few minutes on two cores and downloads nothing.

    Example: prunus demo --out demo
    """
    from ..pipeline import DEMO

    _go(DEMO, out or Path("runs/demo"), [f"seed={seed}", *(set_ or ())], None, json)


def _go(recipe: Path, out: Path | None, overrides: Sequence[str], from_step: int | None, json: bool) -> None:
    import sys

    from ..pipeline import load_recipe
    from ..pipeline import run as go

    speak = Output(json)
    checked = load_recipe(recipe, overrides)
    speak.say(f"prunus run: {checked.model.name} on {checked.data.spec}, {_wanted(checked)}, seed {checked.seed}")
    with speak.log():
        done = go(
            recipe,
            run_dir=out,
            overrides=overrides,
            from_step=from_step,
            progress=not json,
            command=["prunus", *sys.argv[1:]],
        )
    speak.result(_brief(done.directory, done.report), *_tables(done.report))
    page = done.directory / "report.html"
    speak.say(f"report: {page if page.exists() else done.directory / 'report.md'}")


def _wanted(recipe: Recipe) -> str:
    method = recipe.method
    by = f"method {method.name}" if method else f"criterion {recipe.prune.criterion}"
    own = {"ratio": recipe.prune.ratio} if method is None else {"amount": method.amount}
    amount = recipe.objective.target or own
    return ", ".join([by, *(f"{name} {value}" for name, value in amount.items() if value is not None)])


def _brief(directory: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints: where everything is, and the numbers that people ask for."""
    summary = report.get("summary", {})
    keys = ("headline", "final", "compression_ratio", "params_ratio", "macs_ratio", "speedup")
    return {
        "status": report["status"],
        "directory": str(directory),
        "budget": report.get("budget"),
        "baseline": {key: report.get("baseline", {}).get(key) for key in ("params", "macs", "bytes")},
        **{key: summary.get(key) for key in keys},
        "table": summary.get("table"),
    }


def _tables(report: Mapping[str, Any]) -> list[Table]:
    from ..report import headline

    rows = [
        (row["label"], shown(row["dense"]), shown(row["pruned"])) for row in report.get("summary", {}).get("table", ())
    ]
    return [table(headline(report), ("", "dense", "pruned"), rows)]
