"""Write docs/methods_measured.md and its plot from the results of run.py.

python benchmarks/methods/page.py [--results benchmarks/results/methods.jsonl]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from cases import BASELINES, LEFT_OUT, SLOW, all_cases
from evidence import RESULTS, SAMPLE, Key, Row, key_of, read
from setting import BUDGETS
from verdicts import SLACK, Cell, Column, Name, cells, is_baseline

from prunus.methods import methods

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOT = DOCS / "methods_measured.md", DOCS / "images" / "methods_measured.png"

DENSE = 0.9169

TITLES = {"filter": "Filters and channels", "weight": "Single weights"}
AMOUNTS = {"filter": "{:.0%} of the MACs left", "weight": "{:.0%} zeros"}
NORMS = {"filter": "the L2 norm", "weight": "magnitude"}
RANDOM = {"filter": "random", "weight": "random"}

INTRODUCTION = """# Methods, measured

What the methods of this library do to one network under one protocol, as `benchmarks/methods/run.py` found it; this
page is written by `benchmarks/methods/page.py` from `benchmarks/results/methods.jsonl`. Rows that have not been run are
empty. One small network is no verdict on a method: it says which ranking of channels or weights carries information
here, and how little of that is left after training.

- **Network**: ResNet-20 with shortcuts of kind A, trained on CIFAR-10: 91.69% of the 10,000 test images.
- **Budgets**: filter methods remove channels until 75%, 50% or 35% of the multiply-accumulates (MACs) are left, those
  of the residual stream included. Every layer loses the same share, so that only the choice within a layer differs;
  "global" ranks all channels together. Weight methods set 50%, 80% or 90% of the weights of convolutions and of the
  classifier to zero; the variant says how they are divided among layers.
- **Not recovered**: nothing is trained, but batch norm is estimated anew on 640 training images, for all alike.
- **Recovered**: 80 further steps of SGD on 64 images (4 passes over the same 1,280 training images, augmented;
  learning rate 0.02 in a cosine; bf16), the same images in the same order for all. Methods that train by themselves (*)
  have these 80 steps for everything, where their papers have hundreds of times as many.
- **Statistics** come from 512 training images. Methods whose result depends on the images or on chance have up to
  three seeds; the others have one.
- **Accuracy** is top-1 on all 10,000 test images, computed in bfloat16. The interval is the 95% Wilson interval; with
  several seeds the mean stands before the range from the lowest to the highest end of their intervals.
- **Better, worse**: an exact McNemar test on the same images, at 5% for all methods of a column together (Bonferroni).
  With several seeds, of the method or of the baseline, every pair must say so. `▲` is better than the L2
  norm (for weights: than magnitude, layer by layer), `▼` worse.
- **Ranking only** is the criterion without the repair or training of its method; "4,096 images" reads eight times as
  many images, because gradients on images that the network has learned are small and noisy. `filtersketch` and
  `wacp_jsd` write new values into the weights and are meant to be trained right after.
- A network that is not within {slack:.0%} of its budget shows its own MACs; with more than the budget it cannot be
  better, with less it cannot be worse.

![Accuracy at the middle budget for every method, with and without recovery](images/methods_measured.png)
"""


def page(rows: Iterable[Row], again: Mapping[Key, Row]) -> str:
    """The page in Markdown; `again` are rows that were measured a second time."""
    rows = list(rows)
    table = cells(rows)
    lines = [INTRODUCTION.format(slack=SLACK), "## In short", "", *_short(table), "", *_cost(rows, again)]
    for kind in BUDGETS:
        lines += [f"## {TITLES[kind]}", "", *_findings(kind, table), "", *_table(kind, table), ""]
    lines += ["## Not in this table", "", "| method | why |", "| --- | --- |"]
    lines += [f"| `{method}` | {why} |" for method, why in sorted(LEFT_OUT.items())]
    others = sorted(set(methods()) - set(LEFT_OUT) - {case.method for case in all_cases()})
    lines += ["", f"For other networks, or not run here: {', '.join(f'`{method}`' for method in others)}."]
    return "\n".join(lines) + "\n"


# ----------------------------------------------------------------------------------------------------------- findings


def _short(table: Mapping[Column, Mapping[Name, Cell]]) -> list[str]:
    """At the middle budgets: how many beat the baselines, the best ones, and how far apart they are."""
    lines = []
    for kind, budgets in BUDGETS.items():
        chance, norm = BASELINES[kind]
        for recovered in (False, True):
            column = (kind, budgets[1], recovered)
            found = {name: cell for name, cell in table.get(column, {}).items() if not is_baseline(name, chance)}
            judged = [cell for name, cell in found.items() if chance in cell.against]
            rivals = [cell for name, cell in found.items() if norm in cell.against]
            if not rivals:
                continue
            over, above = _count(judged, chance, "better"), _count(rivals, norm, "better")
            under, below = _count(judged, chance, "worse"), _count(rivals, norm, "worse")
            best = sorted(found, key=lambda name: -found[name].accuracy)[:3]
            values = sorted(cell.accuracy for cell in found.values())
            quarter = len(values) // 4
            lines.append(
                f"- {TITLES[kind]}, {_named(column)}: of {len(judged)} ways {over} beat random and {under} do worse; "
                f"of {len(rivals)}, {above} beat {NORMS[kind]} and {below} do worse. Best: "
                f"{', '.join(f'{_label(name)} {100 * found[name].accuracy:.1f}%' for name in best)}. The middle half "
                f"lies between {100 * values[quarter]:.1f}% and {100 * values[-1 - quarter]:.1f}%."
            )
    return lines or ["Nothing has been measured yet."]


def _cost(rows: Sequence[Row], again: Mapping[Key, Row]) -> list[str]:
    """What the whole table takes, and how many rows come out the same, from those measured a second time."""
    pairs = [(row, again[key_of(row)]) for row in rows if key_of(row) in again]
    if len(pairs) < 2:
        return []
    own = [second["took"] - sum(_gathered(second).values()) - _pruning(second) for _, second in pairs]
    mean, spread = statistics.mean(own), 1.96 * statistics.stdev(own) / len(own) ** 0.5
    gathering = sum(_longest((what, s) for row in rows for what, s in _gathered(row).items()).values())
    pruning = sum(_longest((key_of(row)[:-1], _pruning(row)) for row in rows).values())
    once = 2 * gathering + pruning
    low, middle, high = ((len(rows) * one + once) / 3600 / 2 for one in (mean - spread, mean, mean + spread))
    apart = [abs(first["accuracy"] - second["accuracy"]) for first, second in pairs]
    return [
        f"All {len(rows):,} rows take {middle:.1f} hours on two cores (95% interval {low:.1f} to {high:.1f}). "
        f"{len(pairs)} of them, drawn at random, were measured a second time by two processes: {mean:.1f} s each, "
        f"beside {gathering:,.0f} s of statistics, once in each process, and {pruning:,.0f} s of pruning by slow "
        f"methods, once for rows without and with recovery. {apart.count(0.0)} of the {len(pairs)} came out the same "
        f"to the last image; the largest difference is {100 * max(apart):.2f} points.",
        "",
    ]


def _gathered(row: Row) -> dict[Hashable, float]:
    """Seconds for statistics, which other rows of the same seed read too."""
    return {(row["seed"], need): seconds for need, seconds in row["seconds_of_statistics"].items()}


def _pruning(row: Row) -> float:
    """Seconds for a network that serves two rows; 0 where each row prunes for itself."""
    return row["seconds"] - sum(_gathered(row).values()) if row["method"] in SLOW else 0.0


def _longest(measured: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    found: dict[Hashable, float] = {}
    for what, seconds in measured:
        found[what] = max(seconds, found.get(what, 0.0))
    return found


def _count(cells_: Iterable[Cell], baseline: str, verdict: str) -> int:
    return sum(cell.against.get(baseline) == verdict for cell in cells_)


def _columns(kind: str) -> list[Column]:
    return [(kind, budget, recovered) for recovered in (False, True) for budget in BUDGETS[kind]]


def _named(column: Column) -> str:
    kind, budget, recovered = column
    return f"{AMOUNTS[kind].format(budget)}, {'recovered' if recovered else 'not recovered'}"


def _findings(kind: str, table: Mapping[Column, Mapping[Name, Cell]]) -> list[str]:
    """What can be said in words: who beats random and who the norm, column by column."""
    lines = []
    for column in _columns(kind):
        found = table.get(column, {})
        judged = {name: cell for name, cell in found.items() if cell.against}
        if not judged:
            continue
        chance, norm = BASELINES[kind]
        others = {
            name: cell for name, cell in judged.items() if chance in cell.against and not is_baseline(name, chance)
        }
        lines += [f"**{_named(column)}** ({_baselines(kind, found)}; {len(others)} others):", ""]
        lines.append(f"- better than random: {_list(others, chance, 'better')}")
        lines.append(f"- not clearly different from random: {_list(others, chance, 'no clear difference')}")
        lines.append(f"- worse than random: {_list(others, chance, 'worse')}")
        rivals = {name: cell for name, cell in others.items() if norm in cell.against}
        lines.append(f"- better than {NORMS[kind]}: {_list(rivals, norm, 'better')}")
        lines.append(f"- not clearly different from {NORMS[kind]}: {_list(rivals, norm, 'no clear difference')}")
        lines += [f"- worse than {NORMS[kind]}: {_list(rivals, norm, 'worse')}", ""]
    return lines or ["Nothing has been measured yet."]


def _baselines(kind: str, found: Mapping[Name, Cell]) -> str:
    variant = "" if kind == "filter" else "layer"
    texts = []
    for name, label in zip(BASELINES[kind], (RANDOM[kind], NORMS[kind])):
        cell = found.get((name, variant))
        texts.append(f"{label} {100 * cell.accuracy:.1f}%" if cell else f"{label} not measured")
    return ", ".join(texts)


def _list(found: Mapping[Name, Cell], baseline: str, verdict: str) -> str:
    """Names, best first, with their number."""
    names = [name for name, cell in found.items() if cell.against.get(baseline) == verdict]
    names.sort(key=lambda name: -found[name].accuracy)
    return f"{len(names)}: {', '.join(_label(name) for name in names)}" if names else "none"


def _label(name: Name) -> str:
    method, variant = name
    return f"`{method}`" + (f" ({variant})" if variant else "")


# -------------------------------------------------------------------------------------------------------------- table


def _table(kind: str, table: Mapping[Column, Mapping[Name, Cell]]) -> list[str]:
    columns = _columns(kind)
    heads = ["method", *(f"{AMOUNTS[kind].format(b)}{', recovered' if r else ''}" for _, b, r in columns), "seconds"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in _ordered(kind, table):
        found = [table.get(column, {}).get(name) for column in columns]
        times = [cell.seconds for cell in found if cell is not None and not cell.trains]
        texts = [_text(cell, column, BASELINES[kind][1]) for cell, column in zip(found, columns)]
        star = "*" if any(cell is not None and cell.trains for cell in found) else ""
        lines.append(f"| {_label(name)}{star} | {' | '.join(texts)} | {f'{max(times):.1f}' if times else ''} |")
    lines += ["", "Seconds: to choose and to remove, on one core, statistics included; the longest of the row."]
    return lines


def _text(cell: Cell | None, column: Column, norm: str) -> str:
    if cell is None:
        return ""
    mark = {"better": " ▲", "worse": " ▼"}.get(cell.against.get(norm, ""), "")
    text = f"{100 * cell.accuracy:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]{mark}"
    kind, budget, _ = column
    if kind == "filter" and abs(cell.macs - budget) > SLACK:
        return f"{text} ({cell.macs:.0%} MACs)"
    if kind == "weight" and abs(cell.sparsity - budget) > SLACK:
        return f"{text} ({cell.sparsity:.0%} zeros)"
    return text


def _ordered(kind: str, table: Mapping[Column, Mapping[Name, Cell]]) -> list[Name]:
    """All methods that are in the benchmark, the best at the middle budget first, those not measured last."""
    names = [(case.method, case.variant) for case in all_cases() if case.kind == kind]
    budget = BUDGETS[kind][1]
    after, before = table.get((kind, budget, True), {}), table.get((kind, budget, False), {})

    def rank(name: Name) -> tuple[float, float]:
        return tuple(-found[name].accuracy if name in found else 1.0 for found in (after, before))  # type: ignore[return-value]

    return sorted(names, key=rank)


# --------------------------------------------------------------------------------------------------------------- plot


def plot(rows: Iterable[Row], path: Path) -> None:
    """Accuracy at the middle budget of every method, hollow without and filled with recovery, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = cells(rows)
    counts = {kind: len(_ordered(kind, table)) for kind in BUDGETS}
    figure, axes = plt.subplots(1, 2, figsize=(13, 2 + 0.19 * max(counts.values())), layout="constrained")
    for ax, kind in zip(axes, BUDGETS):
        budget = BUDGETS[kind][1]
        names = [n for n in _ordered(kind, table) if any(n in table.get((kind, budget, r), {}) for r in (False, True))]
        for recovered, face, label in ((False, "white", "not recovered"), (True, "#1f5fa8", "recovered")):
            found = table.get((kind, budget, recovered), {})
            shown = [(row, found[name]) for row, name in enumerate(names) if name in found]
            y, cells_ = [row for row, _ in shown], [cell for _, cell in shown]
            x = [100 * cell.accuracy for cell in cells_]
            below = [100 * max(cell.accuracy - cell.low, 0) for cell in cells_]
            above = [100 * max(cell.high - cell.accuracy, 0) for cell in cells_]
            ax.errorbar(
                x, y, xerr=[below, above], fmt="o", ms=4.5, mfc=face, mec="#1f5fa8", ecolor="#1f5fa8", lw=1, label=label
            )
            for baseline, colour in zip(BASELINES[kind], ("#b5482f", "#777777")):
                cell = found.get((baseline, "" if kind == "filter" else "layer"))
                if cell is not None:
                    ax.axvline(100 * cell.accuracy, color=colour, lw=0.8, ls="-" if recovered else ":")
        ax.set_yticks(range(len(names)), [" ".join(filter(None, name)) for name in names], fontsize=7)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel("top-1 accuracy on 10,000 test images, %")
        ax.set_title(f"{TITLES[kind]}, {AMOUNTS[kind].format(budget)}", fontsize=10)
        ax.grid(axis="x", color="#e5e5e5", lw=0.6)
        ax.set_axisbelow(True)
    handles, texts = axes[0].get_legend_handles_labels()
    note = "vertical lines: random in red, L2 norm or magnitude in grey; dotted: not recovered"
    figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8, title=note, title_fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    rows = list(read(options.results).values())
    options.page.write_text(page(rows, read(options.sample)))
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
