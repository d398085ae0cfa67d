"""What a step hands back, and what the runner knows about a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .work import Work


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a step must reach. `passed` is None for what is only noted."""

    name: str
    passed: bool | None
    detail: str = ""


@dataclass(slots=True)
class Section:
    """A step's part of the report: its values, its checks, and the files that it wrote.

    Attributes:
        values: keys of the section, plain data.
        artefacts: name -> path relative to the run directory; later steps read these files.
        top: keys that stand at the top of the report beside the section (`device`, `repro`, `budget`).
        skipped: why the step had nothing to do; empty when it ran.
    """

    values: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, str] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    skipped: str = ""

    def must(self, name: str, passed: bool, detail: str = "") -> None:
        """Record a condition; the run stops after this step when it does not hold."""
        self.checks.append(Check(name, bool(passed), detail))

    def note(self, name: str, detail: str) -> None:
        """Record something that is worth telling and stops nothing."""
        self.checks.append(Check(name, None, detail))

    @property
    def failed(self) -> list[Check]:
        """The conditions that do not hold."""
        return [check for check in self.checks if check.passed is False]

    def header(self) -> dict[str, Any]:
        """Artefacts and checks as plain data."""
        return {"artefacts": dict(self.artefacts), "checks": [asdict(check) for check in self.checks]}


@dataclass(frozen=True, slots=True)
class Step:
    """One of the nine steps.

    Attributes:
        number: 1 to 9.
        key: where its section stands in the report.
        title: for people.
        function: does the work.
        recipe: the fields of the recipe that decide its result, as dotted paths.
        needs: keys of the earlier steps whose results it reads.
        reads_numbers: it reads what those steps reported, and not only the files that they wrote.
    """

    number: int
    key: str
    title: str
    function: Callable[[Work], Section]
    recipe: tuple[str, ...]
    needs: tuple[str, ...] = ()
    reads_numbers: bool = False
