"""Augmentation in two steps: draw the parameters of every sample of an epoch, then apply those of a batch.

What happens to a sample hangs on its place in the split, the seed and the epoch only, neither on the batch size nor on
where a run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class ShiftFlip:
    """Random shift by up to `shift` pixels each way, black where the image moved away, then a mirror image or not.

    A shift by up to 4 is the field's "pad 4, random crop" for CIFAR.

    Source: Lee et al., "Deeply-Supervised Nets", 2014, arXiv:1409.5185; He et al., 2015, arXiv:1512.03385, section 4.2.
    """

    shift: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise InputError(f"ShiftFlip: shift={self.shift} pixels must be 0 or more")

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """(samples, 3) int64: rows down, columns right, mirrored (0 or 1)."""
        shifts = torch.randint(-self.shift, self.shift + 1, (samples, 2), generator=generator)
        flips = torch.randint(0, 2 if self.flip else 1, (samples, 1), generator=generator)
        return torch.cat([shifts, flips], dim=1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Move and mirror each image of a batch.

        Args:
            images: (N, C, H, W), any dtype.
            drawn: (N, 3), rows of what `draw` gave.

        Returns:
            (N, C, H, W) of the same dtype, laid out channels last.
        """
        count, _, height, width = images.shape
        pad = self.shift
        room = images.new_zeros(count, height + 2 * pad, width + 2 * pad, images.shape[1])
        room[:, pad : pad + height, pad : pad + width] = images.permute(0, 2, 3, 1)
        rows = torch.arange(height) + (pad - drawn[:, 0:1])
        columns = torch.arange(width).repeat(count, 1)
        columns = torch.where(drawn[:, 2:3] == 1, columns.flip(1), columns) + (pad - drawn[:, 1:2])
        moved = room[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)
