"""The parts of one training run and the state that it can be continued from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint as stored
from . import randomness
from .batches import Batches
from .config import TrainingConfig
from .ema import Ema
from .learning_rate import Schedule
from .meter import Meter, Tally
from .objective import Objective
from .precision import Execution
from .processes import Processes
from .progress import Reporter
from .result import EpochRecord
from .state import on_cpu, overwrite


@dataclass(frozen=True)
class StepInfo:
    """What `on_step` is told after each optimiser step: it may change the weights (masks, projections).

    `epoch` and `step` count from 1; `step` over the whole run of `steps` steps.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int
    step: int
    steps: int


@dataclass
class Position:
    """How far a run is. `epoch` epochs are done, and `batch` batches of the next one, `step` steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best: EpochRecord | None = None
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Position:
        """Read what `to_dict` wrote."""
        history = [EpochRecord(**record) for record in data["history"]]
        best = EpochRecord(**data["best"]) if data["best"] else None
        return cls(**{**data, "history": history, "best": best})


@dataclass
class Run:
    """One training run, put together by `fit`."""

    config: TrainingConfig
    execution: Execution
    processes: Processes
    model: nn.Module
    network: nn.Module  # the model as it is called: compiled, and averaging gradients over processes
    objective: Objective
    batches: Batches
    validation: Batches | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # type: ignore[name-defined]
    schedule: Schedule
    steps_per_epoch: int
    reporter: Reporter
    identity: dict[str, Any]
    ema: Ema | None = None
    folder: Path | None = None
    on_step: Callable[[StepInfo], None] | None = None
    position: Position = field(default_factory=Position)
    tally: Tally = field(default_factory=Tally)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    clock: float = field(default_factory=time.perf_counter)
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.processes.device)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def tick(self) -> None:
        """Book the time since the last tick."""
        now = time.perf_counter()
        self.position.seconds += now - self.clock
        self.position.epoch_seconds += now - self.clock
        self.clock = now

    def save(self) -> None:
        """Write a checkpoint, if the run keeps any. All processes take part; the leading one writes."""
        if self.folder is None:
            return
        self.tick()
        mine = (*randomness.capture(self.processes.device), asdict(self.tally))
        everyone = self.processes.gather(mine)
        if self.processes.leads:
            stored.write(self.folder, self._snapshot(everyone))

    def _snapshot(self, everyone: list[tuple[dict[str, Tensor], dict[str, Any], dict[str, float]]]) -> stored.Snapshot:
        states, numbers = stored.pack_optimizer(self.optimizer)
        parts = {"model": on_cpu(self.model), "optimizer": states, "best": self.best_state}
        if self.ema is not None:
            parts["ema"] = {name: value.cpu().contiguous() for name, value in self.ema.average.items()}
        for rank, (tensors, _, _) in enumerate(everyone):
            parts[f"random/{rank}"] = tensors
        facts = {
            "format": stored.FORMAT,
            "identity": self.identity,
            "execution": self.execution.to_dict(),
            "position": self.position.to_dict(),
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "random": [facts for _, facts, _ in everyone],
            "tallies": [tally for _, _, tally in everyone],
        }
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return stored.Snapshot(tensors, facts)

    def continue_from(self, snapshot: stored.Snapshot) -> None:
        """Become the run that wrote `snapshot`, at the very step at which it did."""
        facts, rank = snapshot.facts, self.processes.rank
        overwrite(self.model, snapshot.part("model"))
        stored.unpack_optimizer(self.optimizer, snapshot.part("optimizer"), facts["optimizer"])
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        if self.ema is not None:
            for name, value in snapshot.part("ema").items():
                self.ema.average[name].copy_(value)
            self.ema.updates = facts["ema_updates"]
        self.best_state = snapshot.part("best")
        self.position = Position.from_dict(facts["position"])
        self.tally = Tally(**facts["tallies"][rank])
        randomness.restore(snapshot.part(f"random/{rank}"), facts["random"][rank], self.processes.device)
