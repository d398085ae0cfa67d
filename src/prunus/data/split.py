"""A split is two tensors and how to normalise them; a data source is three splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ShapeError
from .augment import ShiftFlip
from .partition import stratified

_SHUFFLE, _AUGMENT = 0, 1  # streams of random numbers that never share a state


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes.

    Attributes:
        inputs: (N, C, H, W) images or (N, F) features, kept as they are stored: uint8 in 0..255, or floats (images in
            [0, 1]).
        targets: (N,) int64, each in [0, classes).
        mean, std: per channel, in units of [0, 1] pixels; empty where inputs are not normalised.
        augmentation: what `batches(augment=True)` does to images; None does nothing.
    """

    inputs: Tensor
    targets: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: ShiftFlip | None = None

    def __post_init__(self) -> None:
        inputs, targets = self.inputs, self.targets
        if inputs.ndim < 2 or targets.ndim != 1 or len(inputs) != len(targets):
            raise ShapeError(
                f"Split: inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} must be (N, C, H, W) "
                f"or (N, F) and (N,)"
            )
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            raise InputError(f"Split: inputs are {inputs.dtype}; give uint8 in 0..255 or floats (images in [0, 1])")
        if targets.dtype != torch.int64:
            raise InputError(f"Split: targets are {targets.dtype}; class numbers must be torch.int64: targets.long()")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise InputError("Split: inputs hold NaN or infinite values; remove those samples or replace the values")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, inputs.shape[1]) or len(self.mean) != len(self.std):
                raise ShapeError(
                    f"Split: {name}={values} must have one value for each of the {inputs.shape[1]} channels"
                )
        if any(not s > 0 for s in self.std):
            raise InputError(f"Split: std={self.std} must be above zero in every channel")

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"Split({len(self)} samples of {tuple(self.inputs.shape[1:])} {self.inputs.dtype})"

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised float32 inputs, int64 targets), a pure function of the arguments.

        Args:
            batch_size: Samples per batch; the last batch may be smaller.
            shuffle: Take the samples in an order drawn from (seed, epoch) instead of their own.
            seed: Of the order and of the augmentation.
            epoch: Another epoch gives another order and another augmentation.
            augment: Apply `augmentation`, if the split has one.
            drop_last: Leave out a last batch that is smaller.
            start: Number of batches to pass over at no cost, to go on in the middle of an epoch.

        Raises:
            InputError: `batch_size` is below 1 or `start` below 0.
        """
        if batch_size < 1 or start < 0:
            raise InputError(f"batches: batch_size={batch_size} must be 1 or more, start={start} 0 or more")
        return self._batches(
            batch_size, shuffle, (seed, epoch), self.augmentation if augment else None, drop_last, start
        )

    def _batches(
        self,
        batch_size: int,
        shuffle: bool,
        state: tuple[int, int],
        augmentation: ShiftFlip | None,
        drop_last: bool,
        start: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = (
            torch.randperm(len(self), generator=generator_of(*state, _SHUFFLE)) if shuffle else torch.arange(len(self))
        )
        drawn = augmentation.draw(len(self), generator_of(*state, _AUGMENT)) if augmentation else None
        for first in range(start * batch_size, len(self), batch_size):
            chosen = order[first : first + batch_size]
            if drop_last and len(chosen) < batch_size:
                return
            inputs = self.inputs[chosen]
            if augmentation is not None and drawn is not None:
                inputs = augmentation.apply(inputs, drawn[chosen])
            yield normalise(as_float(inputs), self.mean, self.std), self.targets[chosen]

    def count_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """How many batches `batches` yields."""
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def subset(self, chosen: int | Sequence[int] | Tensor) -> Split:
        """A split of some of the samples: those of the given indices in that order, or a number of samples.

        A number takes the classes in the proportions that they have here, always the same samples, in their order.

        Raises:
            InputError: More samples than there are, or an index that does not exist.
        """
        if isinstance(chosen, int):
            if not 0 <= chosen <= len(self):
                raise InputError(f"subset: {chosen} samples asked for, but the split has {len(self)}")
            indices = torch.from_numpy(stratified(self.targets.numpy(), chosen, seed=0))
        else:
            indices = torch.as_tensor(chosen, dtype=torch.int64)
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
                raise InputError(
                    f"subset: indices lie in [{int(indices.min())}, {int(indices.max())}], but the split has "
                    f"{len(self)} samples"
                )
        return dataclasses.replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    @cached_property
    def hash(self) -> str:
        """sha256 of shapes, dtypes and contents of inputs and targets."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DataSource:
    """Train, validation and test samples of one task.

    Training uses `train`, every choice is made on `validation`, and `test` is for the numbers that are reported.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, split in self.splits.items():
            if len(split) and not 0 <= int(split.targets.min()) <= int(split.targets.max()) < self.classes:
                raise InputError(
                    f"{self.name}: labels of the {part} split lie in [{int(split.targets.min())}, "
                    f"{int(split.targets.max())}]; "
                    f"with {self.classes} classes they must be 0 to {self.classes - 1}"
                )
            if split.inputs.shape[1:] != self.train.inputs.shape[1:]:
                raise ShapeError(
                    f"{self.name}: samples of the {part} split are {tuple(split.inputs.shape[1:])}, those of "
                    f"the train split "
                    f"{tuple(self.train.inputs.shape[1:])}; all must have one shape"
                )
        if self.class_names and len(self.class_names) != self.classes:
            raise InputError(f"{self.name}: {len(self.class_names)} class names for {self.classes} classes")

    @property
    def splits(self) -> Mapping[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in units of [0, 1] pixels; empty where inputs are not normalised."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in units of [0, 1] pixels; empty where inputs are not normalised."""
        return self.train.std

    @property
    def hashes(self) -> Mapping[str, str]:
        """sha256 of each split's inputs and targets."""
        return {part: split.hash for part, split in self.splits.items()}

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> DataSource:
        """The same samples, normalised by other values: those that a pretrained network was trained with."""
        parts = {
            part: dataclasses.replace(split, mean=tuple(mean), std=tuple(std)) for part, split in self.splits.items()
        }
        return dataclasses.replace(self, **parts)


def as_float(inputs: Tensor) -> Tensor:
    """float32 inputs; uint8 pixels come to lie in [0, 1]."""
    return inputs.float().div_(255.0) if inputs.dtype == torch.uint8 else inputs.float()


def normalise(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(inputs - mean) / std per channel (dimension 1); the inputs themselves where mean is empty.

    >>> normalise(torch.tensor([[0.5, 0.25]]), (0.25, 0.25), (0.5, 1.0))
    tensor([[0.5000, 0.0000]])
    """
    if not mean:
        return inputs
    shape = (1, len(mean), *(1,) * (inputs.ndim - 2))
    centre = torch.tensor(mean, dtype=inputs.dtype, device=inputs.device).view(shape)
    spread = torch.tensor(std, dtype=inputs.dtype, device=inputs.device).view(shape)
    return (inputs - centre) / spread


def generator_of(*state: int) -> torch.Generator:
    """A generator whose numbers hang on all the integers given, and have nothing to do with those of their
    neighbours."""
    word = np.random.SeedSequence([abs(s) * 2 + (s < 0) for s in state]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))
