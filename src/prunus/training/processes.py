"""The processes that train together, as Hugging Face Accelerate sees them; alone, all of this costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


@dataclass(frozen=True)
class Processes:
    """Who trains: `count` processes, this one being number `rank`, computing on `device`.

    Autocast is the loop's own business (see `precision`), so only Accelerate's process state is used here: it reads
    what `torchrun` and `accelerate launch` set, and opens the process group (gloo on CPUs).
    """

    device: torch.device
    rank: int
    count: int

    @classmethod
    def start(cls, device: str) -> Processes:
        """Join the processes that were launched; `device` is "auto" or a torch device."""
        from accelerate import PartialState

        wanted = _device(device)
        on_cpu = wanted is not None and wanted.type == "cpu"
        # Without cpu=True Accelerate does not look for other processes on a machine that has no accelerator.
        state = PartialState(cpu=on_cpu or not torch.accelerator.is_available())
        here: torch.device = state.device  # type: ignore[assignment]
        if wanted is not None and state.num_processes > 1 and wanted.type != here.type:
            raise InputError(
                f"TrainingConfig: device={device!r}, but these {state.num_processes} processes were already joined on "
                f"{here.type}; take device='auto'"
            )
        alone = state.num_processes == 1
        return cls(device=wanted if wanted and alone else here, rank=state.process_index, count=state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints and writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: averages gradients over the processes, if there are several."""
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type != "cpu" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def share(self, batch: Tensor) -> Tensor:
        """This process's samples of a global batch."""
        return batch if self.count == 1 else batch[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """That (picklable) value of every process, in order of rank."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def agree(self, value: Any) -> Any:
        """The leading process's value, everywhere."""
        return self.gather(value)[0]


def _device(name: str) -> torch.device | None:
    if name == "auto":
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        raise InputError(
            f"TrainingConfig: device={name!r} cannot be used here ({error}); take 'auto' or 'cpu'"
        ) from error
    return device
