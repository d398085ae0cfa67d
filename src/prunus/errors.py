"""Every error that prunus raises on purpose.

PrunusError
├── InputError            an argument is wrong: names it, what was given, what would work (also a ValueError)
│   ├── ShapeError        a tensor has the wrong shape
│   ├── BudgetError       a budget cannot be met; says what the least reachable value is
│   ├── UnknownNameError  a name is not in its table; lists the near and the known ones
│   └── RecipeError       a recipe field is wrong; names the field and the allowed values
├── TraceError            the model did not run on the example inputs
├── SurgeryError          a plan does not fit the model
│   └── VerificationError the cut model differs from the prediction; the model was left as it was
├── StoredFileError       a file is missing, truncated, tampered with, or of a kind that is never opened (pickles)
├── TrainingError         training went wrong (a loss that is not finite); says where and what to try
├── ExportError           an exported file does not compute what the model computes; no file was left
├── StepFailed            a step of a run did not reach what it must
└── MissingExtraError     an optional dependency is not installed; names the extra (also an ImportError)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunusError(Exception):
    """Base of every error raised by prunus on purpose."""


class InputError(PrunusError, ValueError):
    """An argument is wrong. The message names it, what was given and what would work."""


class ShapeError(InputError):
    """A tensor has a shape that the function cannot use."""


class BudgetError(InputError):
    """A budget cannot be met. The message says what can be reached."""


class UnknownNameError(InputError):
    """A name is not in its table."""

    @classmethod
    def of(cls, kind: str, given: object, known: Iterable[str]) -> UnknownNameError:
        """Build the message from the table of known names, nearest first."""
        names = sorted(known)
        near = difflib.get_close_matches(str(given), names, n=3)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
        return cls(f"unknown {kind} {given!r}: {hint}known: {', '.join(names)}")


class RecipeError(InputError):
    """A field of a recipe is wrong."""


class TraceError(PrunusError):
    """The model did not run on the example inputs."""


class SurgeryError(PrunusError):
    """A plan does not fit the model that it is applied to."""


class VerificationError(SurgeryError):
    """The cut model differs from what the plan predicts. Nothing was changed."""


class StoredFileError(PrunusError):
    """A stored file is missing, damaged, or of a kind that is never opened."""


class TrainingError(PrunusError):
    """Training cannot go on: the message names the epoch and step, and what to try."""


class ExportError(PrunusError):
    """A model cannot be exported, or the exported file computes something else. No file was left behind."""


class StepFailed(PrunusError):
    """A step of a run did not reach what it must; the report says which condition."""


class MissingExtraError(PrunusError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """Build the message that names the extra to install."""
        return cls(f"{purpose} needs {package}, which is not installed: pip install 'prunus[{extra}]'")
