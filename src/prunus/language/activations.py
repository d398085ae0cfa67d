"""The hidden states between two blocks, on disk: a block reads one file and writes the other."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StoredFileError


class Activations:
    """Hidden states (samples, length, hidden) in a memory-mapped file, of which only the pages in use are in memory.

    Args:
        path: of the file; made, or taken as it is if it has the right size.
        shape: (samples, length, hidden).
        dtype: of the values.
        fresh: whether its contents are about to be written. If not, it must be there.

    Raises:
        StoredFileError: a file that should be there is missing or of another size.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype, *, fresh: bool) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        if not fresh and (not path.is_file() or path.stat().st_size != size):
            raise StoredFileError(f"{path}, the hidden states of a run that was broken off, is missing or cut short")
        with path.open("w+b" if fresh else "r+b") as file:
            if fresh:
                os.truncate(file.fileno(), size)
            self._map = mmap.mmap(file.fileno(), size)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        """(stop - start, length, hidden), a copy."""
        values = self._view(start, stop).clone()
        self._forget()
        return values

    def write(self, start: int, values: Tensor) -> None:
        """Put values (samples, length, hidden) from sample `start` on."""
        self._view(start, start + len(values)).copy_(values)
        self._forget()

    def flush(self) -> None:
        """Have everything on the disk, so that it outlives the process and the machine."""
        self._map.flush()

    def close(self) -> None:
        """Give the map back; the file stays."""
        self._map.close()

    def _view(self, start: int, stop: int) -> Tensor:
        sample = self.shape[1] * self.shape[2]
        flat = torch.frombuffer(
            self._map, dtype=self.dtype, count=(stop - start) * sample, offset=start * sample * self.dtype.itemsize
        )
        return flat.view(stop - start, *self.shape[1:])

    def _forget(self) -> None:
        """Pages that were touched go back to the system, which keeps their contents; they would count as memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
