"""`fit`: check everything, put a run together, train."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from . import checkpoint as stored
from .batches import Batches, Split, check_split, steps_per_epoch
from .config import TrainingConfig
from .ema import Ema
from .learning_rate import schedule_of
from .loop import train
from .objective import Objective, Penalty
from .optimizers import optimizer_of
from .precision import Execution, choose_execution
from .processes import Processes
from .progress import Reporter, Silent, reporter_of
from .randomness import seeded
from .result import TrainingResult
from .run import Run, StepInfo
from .state import float_dtype_of, not_finite, placed


@dataclass(frozen=True)
class _Order:
    """What `fit` was given."""

    model: nn.Module
    data: Split
    config: TrainingConfig
    teacher: nn.Module | None
    validation: Split | None
    folder: Path | None
    on_step: Callable[[StepInfo], None] | None
    penalty: Penalty | None


def fit(
    model: nn.Module,
    data: Split,
    config: TrainingConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    validation: Split | None = None,
    checkpoint: str | PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    on_step: Callable[[StepInfo], None] | None = None,
    penalty: Penalty | None = None,
) -> TrainingResult:
    """Train `model` in place on the classes of `data`: fine-tuning after a cut, or training from nothing.

    The same call started by `torchrun` or `accelerate launch` trains in several processes; `batch_size` counts the
    samples of all of them together. Batch norm then sees each process's own samples.

    Args:
        model: from inputs to logits (N, classes, ...); a tensor, something with `.logits`, or a tuple that starts with
            them. Its device, train modes, strides and `requires_grad` are afterwards what they were; its gradients are
            None. Parameters that require no gradient stay as they are.
        data: training split; `batches(...)` yields (inputs, int64 labels).
        config: what to do; the default is 40 epochs of SGD with a cosine.
        teacher: a network whose logits (and features) the student should imitate; needs `config.distillation`.
        validation: split that selects (`keep`, `patience`) and is measured after every epoch; never trained on.
        checkpoint: folder for the checkpoint of this run. If it holds one and `resume`, the run goes on from there and
            ends with the very bits of an uninterrupted run (same machine, torch and number of threads); a finished one
            is returned as it ended.
        resume: False starts anew and overwrites.
        progress: show progress on the error stream (a bar on a terminal, a line per epoch elsewhere).
        on_step: called with a `StepInfo` after each optimiser step, e.g. to put zeros back.
        penalty: `penalty(model)` is added to the loss of each step.

    Returns:
        The trained model and everything that was measured on the way.

    Raises:
        InputError: an argument does not fit, or the checkpoint belongs to another run; the model is untouched.
        StoredFileError: the checkpoint is damaged.
        TrainingError: the loss or a weight became NaN or infinite; the last checkpoint is intact.

    Example:
        >>> from prunus.training import TrainingConfig, fit
        >>> result = fit(model, data.train, TrainingConfig(epochs=10), validation=data.validation)  # doctest: +SKIP
    """
    folder = Path(checkpoint) if checkpoint is not None else None
    order = _Order(model, data, config or TrainingConfig(), teacher, validation, folder, on_step, penalty)
    _check(order)
    processes = Processes.start(order.config.device)
    if processes.count > 1 and order.config.batch_size < 2 * processes.count:
        raise InputError(
            f"TrainingConfig: batch_size={order.config.batch_size} counts the samples of all {processes.count} "
            f"processes; give at least {2 * processes.count}"
        )
    if folder is not None and processes.leads:
        stored.prepare_folder(folder)
    identity = _identity(order, processes)
    snapshot = stored.read(folder) if folder is not None and resume else None
    if snapshot is not None:
        stored.check_same_run(snapshot, identity, model, folder)  # type: ignore[arg-type]
    with ExitStack() as stack:
        # Each process drops out other units; batch order comes from the data, which is told config.seed itself.
        stack.enter_context(seeded(order.config.seed + processes.rank, processes.device))
        execution = _execution(order, processes, snapshot)
        for network in filter(None, (model, teacher)):
            stack.enter_context(placed(network, processes.device, execution.memory_format))
        run = _assemble(order, processes, execution, identity, _reporter(order, processes, progress))
        if snapshot is not None:
            run.continue_from(snapshot)
            done = run.position.stopped or run.position.epoch == run.config.epochs
            where = "the run was finished at" if done else "going on from"
            run.reporter.note(f"{where} step {run.position.step} of {run.steps} ({folder})")
        train(run)
    return TrainingResult(
        model=model,
        history=tuple(run.position.history),
        best=run.position.best,
        epochs_run=run.position.epoch,
        steps=run.position.step,
        seconds=run.position.seconds,
        stopped_early=run.position.stopped and run.position.epoch < order.config.epochs,
        kept="best" if run.best_state and order.config.keep == "best" else "last",
        execution=execution,
    )


def _check(order: _Order) -> None:
    config = order.config
    check_split(order.data, "data")
    if order.validation is not None:
        check_split(order.validation, "validation")
    for name, wanted in (("patience", config.patience is not None), ("keep='best'", config.keep == "best")):
        if wanted and order.validation is None:
            raise InputError(f"fit: {name} needs validation=, a split that is not trained on")
    if (order.teacher is None) != (config.distillation is None):
        raise InputError(
            "fit: distillation needs both teacher= (a network) and TrainingConfig(distillation=Distillation(...)); "
            f"only {'the config' if order.teacher is None else 'the teacher'} was given"
        )
    if order.teacher is order.model:
        raise InputError("fit: teacher= is the model itself; give a copy of the network as it was (copy.deepcopy)")
    if not any(p.requires_grad for p in order.model.parameters()):
        raise InputError("fit: no parameter of the model requires a gradient; there is nothing to train")
    for name, network in (("model", order.model), ("teacher", order.teacher)):
        bad = not_finite(network) if network is not None else []
        if bad:
            raise InputError(f"fit: {name}= holds NaN or infinite values in {', '.join(bad[:4])}; nothing was trained")


def _identity(order: _Order, processes: Processes) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it."""
    return {
        "config": order.config.to_dict(),
        "samples": len(order.data),
        "validation samples": len(order.validation) if order.validation is not None else None,
        "teacher": order.teacher is not None,
        "processes": processes.count,
        "device type": processes.device.type,
    }


def _execution(order: _Order, processes: Processes, snapshot: stored.Snapshot | None) -> Execution:
    """As the checkpoint says, so that a run that goes on computes the same bits; else chosen now."""
    device = processes.device
    if snapshot is not None:
        return Execution.from_dict({**snapshot.facts["execution"], "device": str(device)})
    config = order.config
    batches = _batches(order.data, order.model, processes, "contiguous")

    def first_batch() -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels, _ = next(batches.epoch(config, 0, 0, 1))
        return inputs, labels

    steps = config.epochs * steps_per_epoch(len(order.data), config.batch_size, processes.count)
    return processes.agree(choose_execution(order.model, config, device, steps, first_batch))


def _batches(split: Split, model: nn.Module, processes: Processes, memory_format: str) -> Batches:
    return Batches(split, processes, float_dtype_of(model), memory_format)


def _reporter(order: _Order, processes: Processes, progress: bool) -> Reporter:
    steps = steps_per_epoch(len(order.data), order.config.batch_size, processes.count)
    return reporter_of(progress, order.config.epochs, order.config.epochs * steps) if processes.leads else Silent()


def _assemble(
    order: _Order, processes: Processes, execution: Execution, identity: dict[str, Any], reporter: Reporter
) -> Run:
    """Build the parts around a model that is already where it is trained."""
    model, config = order.model, order.config
    per_epoch = steps_per_epoch(len(order.data), config.batch_size, processes.count)
    if order.teacher is not None:
        order.teacher.eval()
    network = processes.wrap(model)
    if config.compile:
        network = torch.compile(network)
    validation = order.validation
    return Run(
        config=config,
        execution=execution,
        processes=processes,
        model=model,
        network=network,  # type: ignore[arg-type]
        objective=Objective(
            model, execution, config.label_smoothing, config.distillation, order.teacher, order.penalty
        ),
        batches=_batches(order.data, model, processes, execution.memory_format),
        validation=None if validation is None else _batches(validation, model, processes, execution.memory_format),
        optimizer=optimizer_of(model, config, processes.device),
        scaler=torch.amp.GradScaler(processes.device.type, enabled=execution.precision == "fp16"),  # type: ignore[attr-defined]
        schedule=schedule_of(config, per_epoch),
        steps_per_epoch=per_epoch,
        reporter=reporter,
        identity=identity,
        ema=Ema(model, config.ema) if config.ema is not None else None,
        folder=order.folder,
        on_step=order.on_step,
    )
