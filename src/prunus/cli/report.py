"""`prunus report`: the HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Out
from .output import Output, table


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, or a report.json.", show_default=False)],
    out: Out = None,
    json: Json = False,
) -> None:
    """Write the self-contained HTML page of a run, also of one that failed or is still going on.

    Example: prunus report runs/demo --out demo.html
    """
    from ..report import headline, render
    from ..report.read import load

    speak = Output(json)
    content, _ = load(run_dir)
    speak.say(f"prunus report: {run_dir} as one HTML page")
    page = render(run_dir, out)
    size = page.stat().st_size
    speak.result(
        {"page": str(page), "bytes": size, "status": content.get("status"), "headline": headline(content)},
        table(headline(content), ("page", "bytes"), [(page, size)]),
    )
