"""The program and its verbs. Verbs import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import analyze, evaluate, export, methods, prune, report, run, sparsify, vocabulary

app = typer.Typer(
    name="prunus",
    help="Neural network pruning: from a trained network and a budget to a smaller one that is verified and reported.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a budget or condition is not met, 2 wrong usage or input.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prunus {__version__}")
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error was raised; may stand anywhere.")] = False,
) -> None:
    pass


app.command()(run.demo)
app.command()(run.run)
app.command()(prune.prune)
app.command()(sparsify.sparsify)
app.command()(vocabulary.vocabulary)
app.command()(analyze.analyze)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(methods.methods)
app.command()(report.report)
