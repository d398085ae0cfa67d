"""A small split of data and a small network, for the tests of training and the processes that they start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TensorSplit:
    """What `fit` needs of a split, over two tensors. Its "augmentation" adds noise."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self.inputs), generator=generator) if shuffle else torch.arange(len(self.inputs))
        for chosen in order.split(batch_size):
            if drop_last and len(chosen) < batch_size:
                return
            inputs = self.inputs[chosen]
            if augment:
                inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
            yield inputs, self.targets[chosen]


def blobs(samples: int = 96, *, channels: int = 1, size: int = 4, classes: int = 3, seed: int = 0) -> TensorSplit:
    """Images of noise around one random mean per class: easy, but not at once."""
    means = torch.randn(classes, channels, size, size, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples,), generator=generator)
    return TensorSplit(means[targets] + torch.randn(samples, channels, size, size, generator=generator), targets)


def small_convnet(seed: int = 0, *, classes: int = 3, width: int = 6) -> Any:  # tests reach into its layers
    """Convolution, batch norm, dropout and a linear head on 1 x 4 x 4 images."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(width * 16, classes),
    )
