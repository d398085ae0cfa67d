"""Write docs/methods/: one page per method from its card and what was measured, and the table of them all.

    python tools/method_pages.py [--folder docs/methods] [--check]

What was measured comes from the files in benchmarks/results/ that exist. `--check` writes nothing and fails where a
page is not what the cards say.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunus.criteria import CRITERIA, criterion_of
from prunus.criteria.table import ALIASES
from prunus.evaluation.significance import wilson
from prunus.layerwise import SOLVERS
from prunus.methods import Card, methods
from prunus.methods.calls import recipe_of

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "docs" / "methods"
RESULTS = REPOSITORY / "benchmarks" / "results"

Row = Mapping[str, Any]

SPECIFICATION = {
    "verified": "checked against the authors' code",
    "standard": "standard knowledge of the paper",
    "abstract": "from the paper's abstract only; the details are ours",
    "reconstructed": "our reading of what a survey says of it; details may differ from the paper",
}
ENTRY = {
    "criterion": "a criterion of `prunus.prune`",
    "sparsify": "a criterion, pattern or scope of `prunus.sparsify`",
    "language": "a method or allocation of `prunus.sparsify_language`",
    "method": "a whole procedure",
}


@dataclass(frozen=True)
class Measured:
    """What the benchmarks found: rows of the trained CIFAR-10 ResNet-20, and of a small network on digits."""

    cifar: Sequence[Row] = ()
    digits: Sequence[Row] = ()


# -------------------------------------------------------------------------------------------------------------- pages


def pages(measured: Measured) -> dict[str, str]:
    """File name -> text, of every page and of the table."""
    texts = {f"{card.id}.md": page(card, measured) for card in methods().values()}
    return {"README.md": index(list(methods().values())), **texts}


def page(card: Card, measured: Measured) -> str:
    """The page of one method."""
    facts = [
        ("removes", card.level),
        ("when", card.when),
        ("rate", card.rate),
        ("selection", card.selection),
        ("reads", ", ".join(("weights", *card.needs))),
        ("here it is", ENTRY[card.entry]),
        ("definition", f"{card.specification}: {SPECIFICATION[card.specification]}"),
    ]
    parts = [
        f"# {card.id}",
        f"{card.title}. {card.paper}.",
        table(("", ""), facts),
        "## How it decides",
        f"```text\n{card.formula}\n```",
        *([f"Cost: {card.cost}."] if card.cost else []),
        *([f"Departures and choices: {card.departures}."] if card.departures else []),
        "## How to call it",
        f"<!-- not run: model, data and config are yours -->\n```python\n{card.how}\n```",
        *_recipe(card),
        *_documentation(card),
        "## Measured here",
        *_evidence(card, measured),
        "[All methods](README.md)",
    ]
    return "\n\n".join(parts) + "\n"


def index(cards: Sequence[Card]) -> str:
    """The taxonomy of all methods."""
    counts = ", ".join(f"{sum(card.specification == kind for card in cards)} {kind}" for kind in SPECIFICATION)
    rows = [
        (
            f"[{card.id}]({card.id}.md)",
            card.level,
            card.when,
            card.rate,
            card.selection,
            ", ".join(card.needs) or "weights",
            card.specification,
            card.paper.partition(";")[0],
        )
        for card in cards
    ]
    parts = [
        "# Methods of the literature",
        f"{len(cards)} methods; `prunus methods` prints this table, filtered with `--where level=filter`, and "
        "`prunus methods NAME` one method. All of them run. Generated from the cards by `tools/method_pages.py`. "
        "Beside each other on one network: [methods, measured](../methods_measured.md).",
        f"How sure a definition is ({counts}): "
        + "; ".join(f"*{kind}*, {what}" for kind, what in SPECIFICATION.items())
        + ".",
        table(("method", "removes", "when", "rate", "selection", "reads", "definition", "authors"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _recipe(card: Card) -> Iterable[str]:
    line = recipe_of(card)
    if line:
        yield f"In a [recipe](../recipes.md) of `prunus run`:\n\n```yaml\n{line}\n```"


def _function(card: Card) -> Callable[..., Any] | None:
    """What computes it: the method, the criterion or the solver; None where it is a pattern or an allocation."""
    if card.run is not None:
        return card.run
    if card.entry == "language":
        return SOLVERS[card.id].solve if card.id in SOLVERS else None
    return criterion_of(card.id).function if card.id in {**CRITERIA, **ALIASES} else None


def _documentation(card: Card) -> Iterable[str]:
    """What the function's own text says: arguments, what is returned, choices."""
    function = _function(card)
    if function is None:
        return
    while isinstance(function, partial):  # several cards may be one function with other options
        function = function.func
    text = inspect.getdoc(function)
    if text:
        yield f"`{function.__module__}.{function.__name__}`:"
        yield f"```text\n{text}\n```"


def _evidence(card: Card, measured: Measured) -> Iterable[str]:
    found = [*([f"{card.evidence}."] if card.evidence else []), *_on_cifar(card, measured), *_on_digits(card, measured)]
    return found or ["No measurement of it is recorded here."]


# ----------------------------------------------------------------------------------------------------------- measured


CIFAR = """The trained CIFAR-10 ResNet-20 (91.69%), every method with the same budget and effort; budgets are shares \
of multiply-accumulates that stay, or of weights that are zero; a short recovery is 80 steps. How it was measured, and \
all methods beside each other: {where}."""


def _on_cifar(card: Card, measured: Measured) -> Iterable[str]:
    """The method beside random and the norm under the same budgets."""
    names = _names(card)
    own = [row for row in measured.cifar if row["method"] in names]
    if not own:
        return
    columns = {(row["kind"], row["budget"], row["recovered"]) for row in own}
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in measured.cifar:
        column = (row["kind"], row["budget"], row["recovered"])
        if row["method"] in names or (column in columns and _is_baseline(row)):
            grouped.setdefault((*column, row["method"], row["variant"]), []).append(row)
    where = "[methods, measured](../methods_measured.md)" if TOGETHER.exists() else "`benchmarks/methods/run.py`"
    yield CIFAR.format(where=where)
    rows = []
    order = {"filter": 1, "weight": -1}  # the mildest budget first
    for key, found in sorted(
        grouped.items(), key=lambda item: (item[0][0], -order[item[0][0]] * item[0][1], item[0][2:])
    ):
        kind, budget, recovered, name, variant = key
        said = f"{budget:.0%} of the MACs" if kind == "filter" else f"{budget:.0%} zeros"
        effort = "its own training" if found[0]["trains"] else "short" if recovered else "none"
        rows.append((said, effort, " ".join(filter(None, (f"`{name}`", variant))), *_summary(found)))
    yield table(("budget", "recovery", "method", "test accuracy", "interval", "MACs", "parameters", "zeros"), rows)


TOGETHER = REPOSITORY / "docs" / "methods_measured.md"
BASELINES = ("random", "l2_norm", "random_weight", "magnitude")
"""What every method is held against."""
SAME = {"lp_filter": "l2_norm"}
"""Cards whose criterion is, with its defaults, another one that was measured."""


def _is_baseline(row: Row) -> bool:
    return row["method"] in BASELINES and row["variant"] in ("", "layer")


def _names(card: Card) -> set[str]:
    criterion = set() if card.entry != "criterion" else {criterion_of(card.id).name}
    return {card.id, *criterion, *filter(None, (SAME.get(card.id),))}


def _summary(rows: Sequence[Row]) -> tuple[str, ...]:
    """Of all seeds: the mean, and from the lowest to the highest end of their intervals."""
    accuracy = statistics.mean(row["accuracy"] for row in rows)
    seeds = f" ({len(rows)} seeds)" if len(rows) > 1 else ""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    shares = (statistics.mean(row[key] for row in rows) for key in ("macs", "params", "sparsity"))
    return f"{accuracy:.2%}{seeds}", f"{low:.2%} to {high:.2%}", *(f"{share:.0%}" for share in shares)


DIGITS = """Called as above on a small residual network and scikit-learn's 8×8 digits, {effort}, beside the same \
network pruned at random to the same size (or the same zeros) with the same effort: the mean of {runs} on {n} test \
images and the Wilson interval of one run (`benchmarks/digits_methods.py`; {note}):"""
UNTRAINED = "without any training: only batch norms were measured anew"
TRAINED = "in {epochs} epochs from a {start} network"
HARD = "right after the cut, when differences are large"
EASY = "an easy task, on which most networks come back, so that differences of some two points say nothing"


def _on_digits(card: Card, measured: Measured) -> Iterable[str]:
    """The call of the card, run, beside a random control of the same size."""
    rows = [row for row in measured.digits if row["method"] == card.id and "error" not in row]
    if not rows:
        return
    bare = rows[0]["epochs"] == 0
    effort = UNTRAINED if bare else TRAINED.format(**rows[0])
    runs = f"{len(rows)} runs" if len(rows) > 1 else "one run"
    yield DIGITS.format(n=rows[0]["images"], runs=runs, effort=effort, note=HARD if bare else EASY)
    shown = []
    for label, key in ((f"`{card.id}`", "correct"), ("random", "control")):
        if all(row[key] is not None for row in rows):
            shown.append((label, *_share(rows, key), *_size(rows)))
    if all(row["control"] is None for row in rows):
        yield "It removed less than 1% here, so that there is no control of the same size."
    shown.append(("dense", *_share(rows, "dense"), "100%", "100%", "0%"))
    yield table(("", "accuracy", "95% interval", "MACs", "parameters", "zeros"), shown)


def _share(rows: Sequence[Row], key: str) -> tuple[str, str]:
    """The runs see the same images, so that several are no more images than one."""
    right, images = statistics.mean(row[key] for row in rows), rows[0]["images"]
    interval = wilson(round(right), images)
    return f"{right / images:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"


def _size(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(f"{statistics.mean(row[key] for row in rows):.0%}" for key in ("macs", "params", "sparsity"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


# --------------------------------------------------------------------------------------------------------------- files


def read(folder: Path = RESULTS) -> Measured:
    """The results that there are."""
    return Measured(
        _lines(folder / "methods.jsonl", ("kind", "method", "variant", "budget", "seed", "recovered")),
        _lines(folder / "digits_methods.jsonl", ("method", "seed")),
    )


def _lines(path: Path, key: Sequence[str]) -> list[Row]:
    """Of a measurement that stands there twice, the last: processes that share the work may both do it."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else ())
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def differences(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """What is not as the cards say."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return [
        *(f"{name} is missing or old" for name, text in wanted.items() if there.get(name) != text),
        *(f"{name} belongs to no method" for name in sorted(there.keys() - wanted.keys())),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is old")
    options = parser.parse_args()
    wanted = pages(read())
    if options.check:
        found = differences(options.folder, wanted)
        print("\n".join(found) or f"{len(wanted)} pages are as the cards say")
        return int(bool(found))
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (options.folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
