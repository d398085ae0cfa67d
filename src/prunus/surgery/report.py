"""What a cut did, as data that prints as a small table."""

from __future__ import annotations

from dataclasses import dataclass

from ..types import Graph, Plan, Size


@dataclass(frozen=True)
class Width:
    """Units of a group before and after."""

    group: str
    before: int
    after: int
    kind: str = "channel"


@dataclass(frozen=True)
class Report:
    """Sizes before and after. `widths` are those of all groups that could be cut, in the order of the model.

    `macs` are multiply-accumulates of one sample, `bytes` those of parameters and buffers in memory; all are counted,
    not estimated. `depth` names the blocks and branches that were left out. `notes` say what the numbers do not: a
    measured latency or quality, a budget that could not be kept.
    """

    before: Size
    after: Size
    criterion: str
    widths: tuple[Width, ...]
    notes: tuple[str, ...] = ()
    depth: tuple[str, ...] = ()

    @property
    def reduction(self) -> dict[str, float]:
        """Percent that is gone: of "parameters", "macs" and "bytes"."""
        return {name: _percent(before, after) for name, before, after in self._rows()}

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Units before and after of each kind, over all groups."""
        totals: dict[str, tuple[int, int]] = {}
        for width in self.widths:
            before, after = totals.get(width.kind, (0, 0))
            totals[width.kind] = before + width.before, after + width.after
        return totals

    def _rows(self) -> tuple[tuple[str, int, int], ...]:
        names = ("parameters", "macs", "bytes")
        return tuple((name, getattr(self.before, name), getattr(self.after, name)) for name in names)

    def __str__(self) -> str:
        rows = [
            (name, f"{before:,}", f"{after:,}", f"{-self.reduction[name]:+.1f}%")
            for name, before, after in self._rows()
        ]
        table = [("", "before", "after", "change"), *rows]
        columns = [max(len(row[i]) for row in table) for i in range(4)]
        lines = ["  ".join([row[0].ljust(columns[0]), *map(str.rjust, row[1:], columns[1:])]).rstrip() for row in table]
        cut = sum(width.after < width.before for width in self.widths)
        by = f", criterion {self.criterion}" if self.criterion else ""
        lines.append(f"{cut} of {len(self.widths)} groups cut{by}")
        if len(self.kinds) > 1:
            lines.append(", ".join(f"{kind} {before:,} -> {after:,}" for kind, (before, after) in self.kinds.items()))
        if self.depth:
            lines.append(f"{len(self.depth)} left out whole: {', '.join(self.depth)}")
        return "\n".join([*lines, *self.notes])


def report_of(graph: Graph, plan: Plan, notes: tuple[str, ...] = (), depth: tuple[str, ...] = ()) -> Report:
    """The report of a plan for a graph."""
    kept = {cut.group: len(cut.keep) for cut in plan.cuts}
    widths = tuple(
        Width(group.name, group.size, kept.get(group.name, group.size), group.kind) for group in graph.groups
    )
    return Report(plan.before, plan.after, plan.criterion, widths, notes, depth)


def _percent(before: int, after: int) -> float:
    return 100.0 * (before - after) / before if before else 0.0
