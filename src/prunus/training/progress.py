"""What a run says while it works: a live bar on a terminal, one line per epoch elsewhere, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .result import EpochRecord

if TYPE_CHECKING:
    from rich.console import Console


class Reporter(Protocol):
    """Told about a run by the loop; it only prints."""

    def start(self, done: int) -> None:
        """The run begins (or goes on) after `done` steps."""
        ...

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        """Now and then within an epoch."""
        ...

    def epoch(self, record: EpochRecord, best: EpochRecord | None) -> None:
        """After each epoch and its validation."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def stop(self) -> None:
        """The run ends, on errors too."""
        ...


def reporter_of(progress: bool, epochs: int, steps: int) -> Reporter:
    """Silent unless `progress`; else, on the error stream, a bar if that is a terminal, and lines if it is not."""
    if not progress:
        return Silent()
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        return Bar(console, epochs, steps)
    return Lines(epochs, lambda text: print(text, file=sys.stderr, flush=True))


def epoch_line(record: EpochRecord, best: EpochRecord | None, epochs: int) -> str:
    """One epoch in words.

    >>> record = EpochRecord(3, 300, 0.05, 0.41234, 0.912, 12.34, 0.5, 0.9013)
    >>> epoch_line(record, record, 40)
    'epoch  3/40  loss 0.4123  accuracy 91.20%  validation 90.13% (best 90.13% in epoch 3)  lr 0.05  12.3 s'
    """
    parts = [f"epoch {record.epoch:{len(str(epochs))}d}/{epochs}", f"loss {record.loss:.4f}"]
    parts.append(f"accuracy {record.accuracy:.2%}")
    if record.validation_accuracy is not None and best is not None and best.validation_accuracy is not None:
        shown = f"validation {record.validation_accuracy:.2%}"
        parts.append(f"{shown} (best {best.validation_accuracy:.2%} in epoch {best.epoch})")
    return "  ".join([*parts, f"lr {record.lr:.3g}", f"{record.seconds:.1f} s"])


class Silent:
    """Says nothing."""

    def start(self, done: int) -> None: ...

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None: ...

    def epoch(self, record: EpochRecord, best: EpochRecord | None) -> None: ...

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Lines(Silent):
    """One line per epoch, for logs and pipes."""

    def __init__(self, epochs: int, write: Callable[[str], None]) -> None:
        self.epochs = epochs
        self.write = write

    def epoch(self, record: EpochRecord, best: EpochRecord | None) -> None:
        self.write(epoch_line(record, best, self.epochs))

    def note(self, text: str) -> None:
        self.write(text)


class Bar:
    """A Rich progress bar over the steps of the run, with the epochs' lines above it."""

    def __init__(self, console: Console, epochs: int, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs = epochs
        # No refresh thread: the bar moves when the loop tells it to, and costs nothing in between.
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.task = self.display.add_task(f"epoch 1/{epochs}", total=steps, now="")

    def start(self, done: int) -> None:
        self.display.start()
        self.display.reset(self.task, completed=done)

    def step(self, epoch: int, step: int, loss: float, accuracy: float) -> None:
        now = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
        self.display.update(
            self.task, completed=step, description=f"epoch {epoch}/{self.epochs}", now=now, refresh=True
        )

    def epoch(self, record: EpochRecord, best: EpochRecord | None) -> None:
        self.display.console.print(epoch_line(record, best, self.epochs), highlight=False)
        self.display.update(self.task, completed=record.steps, refresh=True)

    def note(self, text: str) -> None:
        self.display.console.print(text, highlight=False)

    def stop(self) -> None:
        self.display.stop()
