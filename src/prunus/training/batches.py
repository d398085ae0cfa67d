"""From a split of data to the batches of one process, on its device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from .config import TrainingConfig
from .precision import placed_input
from .processes import Processes


class Split(Protocol):
    """What `fit` needs of data: `prunus.data` splits have it.

    `batches` yields (inputs, labels) and is a pure function of its arguments, so that a resumed run sees the same.
    """

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]: ...


def check_split(data: Any, argument: str) -> None:
    """Refuse what is not a split of data, or an empty one."""
    if not callable(getattr(data, "batches", None)) or not hasattr(data, "__len__"):
        raise InputError(
            f"fit: {argument}= must be a split such as prunus.data.load('digits').train, with len() and "
            f"batches(batch_size, shuffle=, seed=, epoch=, augment=, drop_last=); got {type(data).__name__}"
        )
    if not len(data):
        raise InputError(f"fit: {argument}= has no samples")


@dataclass(frozen=True)
class Batches:
    """The batches of `split` that fall to one process, placed for the model."""

    split: Split
    processes: Processes
    dtype: torch.dtype
    memory_format: str

    @property
    def device(self) -> torch.device:
        """Where the batches go."""
        return self.processes.device

    def epoch(
        self, config: TrainingConfig, epoch: int, start: int, stop: int
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Training batches number `start` to `stop` of an epoch as (inputs, labels, share): `share` is the weight of
        this process's mean loss in the mean over all processes."""
        source = self.split.batches(
            config.batch_size, shuffle=True, seed=config.seed, epoch=epoch, augment=config.augment, drop_last=False
        )
        seen = start
        for inputs, labels in self._ahead(islice(source, start, stop)):
            mine = self.processes.share(inputs), self.processes.share(labels)
            yield *self._place(*mine), len(mine[0]) * self.processes.count / len(inputs)
            seen += 1
        if seen < stop:
            raise InputError(
                f"fit: data gave {seen} batches of {config.batch_size} in epoch {epoch + 1}, but its "
                f"{len(self.split)} samples make {stop}; len(data) and data.batches() must agree"
            )

    def once(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, not augmented."""
        for inputs, labels in self._ahead(self.split.batches(batch_size)):
            yield self._place(self.processes.share(inputs), self.processes.share(labels))

    def _place(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        moved = placed_input(inputs, self.device, self.dtype, self.memory_format)
        return moved, labels.to(self.device, non_blocking=True)

    def _ahead(self, source: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        # On a CPU all cores are in the step already, and a second thread would only disturb them.
        return source if self.device.type == "cpu" else prefetched(source, pin=self.device.type == "cuda")


def steps_per_epoch(samples: int, batch_size: int, processes: int) -> int:
    """Optimiser steps in one epoch: a last batch with fewer than two samples per process is left out, because batch
    norm cannot learn from one sample.

    >>> [steps_per_epoch(n, 10, 1) for n in (10, 11, 12, 5)]
    [1, 1, 2, 1]
    """
    whole, rest = divmod(samples, batch_size)
    return max(whole + (rest >= 2 * processes), 1)


def prefetched(
    source: Iterator[tuple[Tensor, Tensor]], *, depth: int = 2, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same items, made by a thread up to `depth` ahead; its errors are raised here, and it ends with the caller."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    gone = threading.Event()

    def put(item: Any) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for inputs, labels in source:
                if not put((inputs.pin_memory(), labels.pin_memory()) if pin else (inputs, labels)):
                    return
            put(None)
        except BaseException as error:  # raised again in the caller's thread
            put(error)

    thread = threading.Thread(target=work, name="prunus-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        thread.join()
