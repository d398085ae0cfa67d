"""The command line: `prunus VERB ...`, one file per verb, over the public functions.

Exit codes: 0 done; 1 a budget or a condition of the run is not met; 2 wrong usage or input; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from ..errors import (
    BudgetError,
    ExportError,
    InputError,
    PrunusError,
    StepFailed,
    SurgeryError,
    TrainingError,
    VerificationError,
)

__all__ = ["main"]

NOT_MET, BAD_INPUT, INTERRUPTED = 1, 2, 130

EXIT_CODES: Mapping[type[PrunusError], int] = {
    BudgetError: NOT_MET,
    StepFailed: NOT_MET,
    TrainingError: NOT_MET,
    ExportError: NOT_MET,
    VerificationError: NOT_MET,
    SurgeryError: NOT_MET,
    InputError: BAD_INPUT,
}
"""The nearest class decides; what is not listed counts as bad input."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends with SystemExit.

    Args:
        arguments: without the program's name; the process's own when absent.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    from .app import app

    try:
        app(args=given, prog_name="prunus")
    except PrunusError as error:
        if debug:
            raise
        _tell(error, as_json="--json" in given)
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def exit_code(error: PrunusError) -> int:
    """The exit code of an error.

    >>> exit_code(StepFailed("")), exit_code(InputError(""))
    (1, 2)
    """
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), BAD_INPUT)


def _tell(error: PrunusError, *, as_json: bool) -> None:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}, ensure_ascii=False))
