"""Step 1: a dense model, trained or loaded, and what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...graph.counting import size_of
from ...training import TrainingResult, fit
from ...types import Measurement
from ..files import save_dense
from ..measuring import accuracy, dense_latency, measured
from ..names import check_finite
from ..once import once
from ..section import Section
from ..work import DENSE, Work


def baseline(work: Work) -> Section:
    """Train or load the dense model, store it, and measure it on all three splits."""
    section = Section(artefacts={"dense": DENSE})
    recipe = work.recipe.plain()
    decided_by = {**{name: recipe[name] for name in ("model", "train")}, **work.sources()}
    section.values.update(once(work, "baseline-dense", decided_by, (DENSE,), lambda folder: _make(work, folder)))
    model = work.dense()
    metrics = _accuracies(work, model)
    count = sum(parameter.numel() for parameter in model.parameters())
    section.values.update(
        origin="trained" if work.recipe.train is not None else "loaded",
        metrics={split: {"accuracy": measured(value)} for split, value in metrics.items()},
        params=count,
        bytes=(work.directory / DENSE).stat().st_size,
        macs=size_of(work.graph).macs,
        latency=measured(dense_latency(work, model)),
        majority_class=_majority(work),
        over_parameterisation=f"{count} parameters, accuracy {metrics['train'].value:.4f} on training samples",
        data={"hashes": dict(work.data.hashes), "seed": work.recipe.seed},
    )
    section.top.update(model=_model(work), data=_data(work))
    _musts(section, work, metrics)
    return section


def _make(work: Work, checkpoints: Path) -> dict[str, Any]:
    """Write the dense model; returns what the report says of its training."""
    model = work.build()
    record: dict[str, Any] = {}
    if work.recipe.train is not None:
        config = work.training(work.recipe.train)
        data = work.data
        result = fit(
            model,
            data.train,
            config,
            validation=data.validation,
            checkpoint=checkpoints,
            progress=work.progress,
        )
        record = {"training": config.to_dict(), **learning(result)}
    model = model.cpu().eval()
    check_finite(model.state_dict(), "the dense model")
    save_dense(model, work.directory / DENSE)
    return record


def learning(result: TrainingResult) -> dict[str, Any]:
    """A training result as the report's keys."""
    curve = [
        {
            "epoch": record.epoch,
            "lr": record.lr,
            "train_loss": record.loss,
            "train_accuracy": record.accuracy,
            "validation_loss": record.validation_loss,
            "validation_accuracy": record.validation_accuracy,
            "seconds": record.seconds,
        }
        for record in result.history
    ]
    return {
        "curve": curve,
        "best_epoch": result.best.epoch if result.best else None,
        "epochs_run": result.epochs_run,
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "training_seconds": result.seconds,
        "precision": result.precision,
        "execution": result.execution.to_dict(),
    }


def _accuracies(work: Work, model: nn.Module) -> dict[str, Measurement]:
    """Accuracy on all three splits; of the training split a part, where it is large."""
    train = work.data.train
    splits = {
        "train": train.subset(min(len(train), work.recipe.evaluate.train_samples)),
        "validation": work.data.validation,
        "test": work.data.test,
    }
    return {name: accuracy(work, model, split) for name, split in splits.items()}


def _majority(work: Work) -> float:
    """Validation accuracy of always answering the most frequent class."""
    counts = torch.bincount(work.data.validation.targets)
    return float(counts.max() / counts.sum())


def _musts(section: Section, work: Work, metrics: dict[str, Measurement]) -> None:
    reached = metrics["validation"].value or 0.0
    floor, majority = work.recipe.objective.floors.validation_accuracy, section.values["majority_class"]
    section.must(
        "validation accuracy is above that of always answering the most frequent class",
        reached > majority,
        f"{reached:.4f} against {majority:.4f}",
    )
    if floor is not None:
        section.must("validation accuracy reaches the floor", reached >= floor, f"{reached:.4f}, floor {floor:.4f}")


def _model(work: Work) -> dict[str, Any]:
    part = work.recipe.model
    origin = part.weights or ("trained in this run" if work.recipe.train is not None else "the factory's own")
    return {"name": part.name, "kwargs": part.kwargs, "source": origin}


def _data(work: Work) -> dict[str, Any]:
    data = work.data
    return {
        "name": data.name,
        "classes": list(data.class_names) or [str(index) for index in range(data.classes)],
        **{name: len(split) for name, split in data.splits.items()},
        "hashes": dict(data.hashes),
        "mean": data.mean,
        "std": data.std,
    }
