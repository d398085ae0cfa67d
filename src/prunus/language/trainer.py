"""Sparsity in Hugging Face's `Trainer`: a callback that keeps zeros and lets them grow as a schedule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MissingExtraError
from ..masks import attach, finalize, masks_of, zero_masks
from ..surgery.sparsify import sparsify


class ZeroKeeper:
    """Holds the zeros of a model whose weights are plain tensors, and adds to them as a schedule says.

    After each optimiser step the weights at the zeros are set to zero again, so that the model wears no masks: what is
    saved in the middle of the training opens as usual.

    Args:
        schedule: step -> sparsity, from `prunus.schedules`, say; None only keeps what is zero at the start.
        every: steps between two updates of the zeros.
        options: as for `prunus.sparsify`: criterion, pattern, scope, layers, keep ... Zeros never come back.

    Raises:
        InputError: an argument is wrong.
    """

    def __init__(self, schedule: Callable[[int], float] | None = None, *, every: int = 1, **options: Any) -> None:
        if schedule is not None and not callable(schedule):
            raise InputError("schedule must be a callable step -> sparsity, such as cubic(0.9, end=1000), or None")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every={every!r} must be a whole number of steps, 1 or more")
        for name in ("sparsity", "inplace", "regrow", "gradient"):
            if name in options:
                raise InputError(f"leave out {name}=; the schedule says how sparse, and zeros stay zero")
        self.schedule, self.every, self.options = schedule, every, options
        self.sparsity = 0.0
        self.masks: dict[str, Tensor] = {}

    def start(self, model: nn.Module, step: int = 0) -> None:
        """Read the zeros that are there; masks that the model wears become zeros. `step` where a training goes on."""
        if masks_of(model):
            finalize(model)
        self.masks = zero_masks(model, self.options.get("layers"), self.options.get("keep", ()))
        self._grow(model, step)

    @torch.no_grad()
    def step(self, model: nn.Module, step: int) -> None:
        """To be called after each optimiser step; `step` counts from 1."""
        self.hold(model)
        if self.schedule is not None and (step % self.every == 0 or self._rests(step)):
            self._grow(model, step)

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Set the weights at the zeros to zero."""
        for name, mask in self.masks.items():
            weight = model.get_parameter(name)
            weight.masked_fill_(~mask.to(weight.device), 0.0)

    def _grow(self, model: nn.Module, step: int) -> None:
        wanted = 0.0 if self.schedule is None else float(self.schedule(step))
        if wanted <= self.sparsity:
            return
        attach(model, self.masks)
        try:
            result = sparsify(model, sparsity=wanted, inplace=True, regrow=False, **self.options)
            self.masks = {name: mask.clone() for name, mask in masks_of(model).items()}
            self.sparsity = wanted
            assert result.model is model
        finally:
            finalize(model)

    def _rests(self, step: int) -> bool:
        """Whether the schedule has come to rest, and the next regular update would come late."""
        assert self.schedule is not None
        return self.schedule(step) == self.schedule(step + self.every) > self.sparsity


def trainer_callback(
    schedule: Callable[[int], float] | None = None,
    *,
    every: int = 1,
    unwrap: Callable[[Any], nn.Module] | None = None,
    **options: Any,
) -> Any:
    """A callback for `transformers.Trainer(callbacks=[...])` that keeps a model's zeros while it is trained.

    ```python
    callback = trainer_callback(cubic(0.5, end=1000), every=50, criterion="magnitude")
    Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
    ```

    Steps are the trainer's `global_step`, so that a training that goes on from a checkpoint goes on with the sparsity
    of its step. Checkpoints hold plain weights with their zeros.

    Args:
        schedule, every, options: see `ZeroKeeper`.
        unwrap: from the trainer's model to the one that is pruned, such as `lambda model: model.student`.

    Returns:
        The callback; its `keeper` is the `ZeroKeeper`.

    Raises:
        MissingExtraError: transformers is not installed. InputError: an argument is wrong.
    """
    try:
        from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError.of("transformers", "transformers", "trainer_callback") from error

    class KeepZeros(TrainerCallback):
        def __init__(self) -> None:
            self.keeper = ZeroKeeper(schedule, every=every, **options)

        def _model(self, given: Any) -> nn.Module:
            model = getattr(given, "module", given) if isinstance(given, _WRAPPERS) else given
            return model if unwrap is None else unwrap(model)

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.keeper.start(self._model(model), state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.keeper.step(self._model(model), state.global_step)

    return KeepZeros()


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
