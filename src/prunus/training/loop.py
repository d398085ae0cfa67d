"""The training loop: epochs of steps, each followed by validation and a checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import TrainingError
from .meter import NotFinite, Tally
from .optimizers import forbid_fused_on_mixed_strides
from .result import EpochRecord
from .run import Run, StepInfo
from .state import not_finite, on_cpu, overwrite
from .validation import validate


def train(run: Run) -> None:
    """Go from the run's position to its end, then leave the weights in the model that the config asks for."""
    position, config = run.position, run.config
    run.reporter.start(position.step)
    try:
        with run.objective.watching():
            while position.epoch < config.epochs and not position.stopped:
                _train_epoch(run)
                _close_epoch(run)
                run.save()
    finally:
        run.reporter.stop()
    _settle(run)


def _train_epoch(run: Run) -> None:
    config, position = run.config, run.position
    run.model.train()
    batches = run.batches.epoch(config, position.epoch, position.batch, run.steps_per_epoch)
    for inputs, labels, share in batches:
        loss, logits = _step(run, inputs, labels, share)
        position.batch += 1
        position.step += 1
        hits = (logits.argmax(1) == labels).sum()
        if run.meter.add(loss, hits, labels.numel() / share, labels.numel()):
            _read_meter(run)
            run.reporter.step(position.epoch + 1, position.step, run.tally.mean_loss, run.tally.accuracy)
        if run.on_step is not None:
            run.on_step(StepInfo(run.model, run.optimizer, position.epoch + 1, position.step, run.steps))
        if run.ema is not None:
            run.ema.update(run.model)
        every = config.checkpoint_every
        if every and position.step % every == 0 and position.batch < run.steps_per_epoch:
            _check_finite(run)
            run.save()


def _step(run: Run, inputs: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """One optimiser step. Nothing here waits for the device."""
    rate = run.schedule(run.position.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss, logits = run.objective(run.network, inputs, labels, share)
    run.scaler.scale(loss).backward()
    if run.config.clip_norm is not None:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
    forbid_fused_on_mixed_strides(run.optimizer)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss.detach(), logits.detach()


def _close_epoch(run: Run) -> None:
    """Average the epoch, validate, remember the best, decide whether to stop; all before the checkpoint."""
    position, config = run.position, run.config
    _check_finite(run)
    _share_buffers(run)
    tallies = run.processes.gather(run.tally)
    total = Tally(*(sum(values) for values in zip(*((t.loss, t.hits, t.count) for t in tallies))))
    record = _validated(run, total)
    if record.better_than(position.best):
        position.best = record
    position.history.append(record)
    position.epoch, position.batch, position.epoch_seconds = position.epoch + 1, 0, 0.0
    run.tally = Tally()
    waited = position.epoch - (position.best.epoch if position.best else 0)
    position.stopped = config.patience is not None and waited >= config.patience
    run.reporter.epoch(record, position.best)
    if position.stopped and position.epoch < config.epochs:
        run.reporter.note(f"stopped after epoch {position.epoch}: no better validation for {waited} epochs")


def _validated(run: Run, total: Tally) -> EpochRecord:
    position = run.position
    record = EpochRecord(
        epoch=position.epoch + 1,
        steps=position.step,
        lr=run.schedule(position.step - 1),
        loss=total.mean_loss,
        accuracy=total.accuracy,
        seconds=0.0,
    )
    if run.validation is not None:
        with _shown(run):
            batch_size = run.config.batch_size
            loss, accuracy = validate(run.model, run.validation, run.execution, run.processes, batch_size)
            record = replace(record, validation_loss=loss, validation_accuracy=accuracy)
            if run.config.keep == "best" and record.better_than(position.best):
                run.best_state = on_cpu(run.model)
    run.tick()
    return replace(record, seconds=position.epoch_seconds)


def _shown(run: Run) -> AbstractContextManager[None]:
    """What is validated and returned: the average of the weights, if one is kept."""
    return nullcontext() if run.ema is None else run.ema.shown_by(run.model)


def _settle(run: Run) -> None:
    run.optimizer.zero_grad(set_to_none=True)
    if run.config.keep == "best" and run.best_state:
        overwrite(run.model, run.best_state)
    elif run.ema is not None:
        overwrite(run.model, run.ema.average)


def _share_buffers(run: Run) -> None:
    """Every process has batch-norm statistics of its own samples; the leading process's become everyone's."""
    if run.processes.count == 1:
        return
    names = {name for name, _ in run.model.named_buffers()}
    averages = [] if run.ema is None else [value for name, value in run.ema.average.items() if name in names]
    for buffer in [*run.model.buffers(), *averages]:
        torch.distributed.broadcast(buffer, 0)


def _read_meter(run: Run) -> None:
    first = run.position.step - len(run.meter.pending) + 1
    try:
        run.meter.read(run.tally)
    except NotFinite as error:
        step = first + error.index
        where = f"epoch {run.position.epoch + 1}, batch {(step - 1) % run.steps_per_epoch + 1}"
        raise TrainingError(f"the loss became {error.value} at step {step} ({where}). {_advice(run)}") from None


def _check_finite(run: Run) -> None:
    """Losses and weights, before anything is written or kept."""
    _read_meter(run)
    names = not_finite(run.model)
    if names:
        raise TrainingError(
            f"weights are no longer finite after step {run.position.step} (epoch {run.position.epoch + 1}): "
            f"{', '.join(names[:4])}. {_advice(run)}"
        )


def _advice(run: Run) -> str:
    config = run.config
    tries = [f"a lower lr (now {config.lr:g})"]
    if config.clip_norm is None:
        tries.append("clip_norm=1.0")
    if not config.warmup:
        tries.append("warmup=1")
    if run.execution.precision != "fp32":
        tries.append(f"precision='fp32' (now {run.execution.precision})")
    kept = f" The last checkpoint in {run.folder} was left as it was." if run.folder else ""
    return f"Try {', '.join(tries)}, and check the inputs for NaN.{kept}"
