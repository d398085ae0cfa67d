"""How much of the world can be pruned: many architectures, cut in half by prunus and by torch-pruning.

    python benchmarks/coverage/run.py [--family timm] [--only 'swin*'] [--again] [--tool prunus]

Each network is pruned in a process of its own, with limits on CPU time and memory. Verdicts:

    pruned   at least 35% of the parameters are gone, and the result was checked
    barely   less is gone
    refused  nothing could be done, and the reason was given (or the limits were passed)
    broken   the result is wrong or does not run, or the tool crashed with an error that it does not explain

The check is not the library's own: where the plan is neutral (removing units is the same as zeroing them), the cut
network must compute, in float64 and on inputs that it was not traced with, what the dense one computes with those
positions of its tensors set to zero; elsewhere the outputs must keep their shapes and be finite. torch-pruning names
no positions that could be zeroed, so that shapes and finite values are all that is asked of it.

Results are appended to benchmarks/results/coverage.jsonl; what is there already is not run again. `table.py` makes
docs/coverage.md from them.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from case import Case
from contenders import TOOLS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "coverage.jsonl"

SOURCES = ("torchvision_models", "timm_models", "huggingface", "plain")
"""Modules with a function `cases()`; one whose library is not installed is left out."""

FAMILIES = {"torchvision": "torchvision_models", "timm": "timm_models", "transformers": "huggingface", "torch": "plain"}

Row = dict[str, Any]


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    selected = [c for c in _cases(options.family) if fnmatch.fnmatch(c.name, options.only)]
    done = {} if options.again else latest(read(options.results))
    for case in selected:
        for tool in options.tool:
            if (case.family, case.name, tool) not in done:
                row = _limited(case, tool, options.seconds, options.gigabytes)
                _append(options.results, row)
                print(_line(row), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, help="only this family")
    parser.add_argument("--only", default="*", help="pattern of names")
    parser.add_argument("--tool", choices=list(TOOLS), action="append", help="default: all")
    parser.add_argument("--again", action="store_true", help="also what has a result already")
    parser.add_argument("--seconds", type=int, default=120, help="limit of CPU time for one network and tool")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit of memory for one network and tool")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.tool = options.tool or list(TOOLS)
    return options


def _cases(family: str | None) -> list[Case]:
    sources = [FAMILIES[family]] if family else SOURCES
    found: list[Case] = []
    for source in sources:
        try:
            found += importlib.import_module(source).cases()
        except ImportError as error:
            print(f"left out {source}: {error}", file=sys.stderr)
    return found


def read(path: Path) -> list[Row]:
    """The rows of a results file, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def latest(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """The newest row of each network and tool."""
    return {(row["family"], row["name"], row["tool"]): row for row in rows}


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _limited(case: Case, tool: str, seconds: int, gigabytes: float) -> Row:
    """Run one case in a child process; what passes the limits is refused, a child that dies is broken."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(writer, case, tool, seconds, gigabytes))
    child.start()
    writer.close()
    try:
        found = reader.recv()
        child.join()
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGXCPU:
            found = {"verdict": "refused", "reason": f"took over {seconds} s of CPU time"}
        else:
            found = {"verdict": "broken", "reason": f"the process died (exit code {child.exitcode})"}
    return {"family": case.family, "name": case.name, "tool": tool, **found}


def _in_child(writer: Connection, case: Case, tool: str, seconds: int, gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    writer.send(_measured(case, TOOLS[tool]))


def _measured(case: Case, tool: Callable[[Case], Row]) -> Row:
    start = time.process_time()
    try:
        row = tool(case)
    except MemoryError:
        row = {"verdict": "refused", "reason": "passed the limit of memory"}
    except Exception as error:  # a case that cannot be built, or a defect of the benchmark
        where = traceback.extract_tb(error.__traceback__)[-1]
        row = {
            "verdict": "broken",
            "reason": f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:400],
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**row, "total_seconds": round(time.process_time() - start, 2), "peak_megabytes": round(peak)}


def _line(row: Row) -> str:
    left = f"{row['parameters_left']:.0%}" if row.get("parameters_left") is not None else ""
    return "  ".join(
        (
            f"{row['tool']:13}",
            f"{row['verdict']:8}",
            f"{left:>4}",
            f"{row.get('seconds', 0):7.1f}s",
            f"{row['family']}/{row['name']}",
            row.get("reason", "")[:160],
        )
    )


if __name__ == "__main__":
    sys.exit(main())
