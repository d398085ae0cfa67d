"""Step 6: recovery of the cut model, and the same effort spent on the dense one for comparison."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from ...surgery import save
from ...training import TrainingConfig, TrainingResult, fit, recalibrate_batchnorm
from ..directory import file_digest
from ..files import count_zeros, save_dense
from ..measuring import accuracy, measured
from ..once import once
from ..recipe import RecoverPart
from ..section import Section
from ..work import CONTROL, CUT, DENSE, FINAL, Work, mask_hash
from .baseline import learning


def finetune(work: Work) -> Section:
    """Recalibrate and fine-tune the cut model; selection is by validation data alone."""
    part = work.recipe.recover
    section = Section(artefacts={"model": FINAL})
    decided_by = {name: file_digest(work.directory / name) for name in (CUT, DENSE)} | {"recover": _plain(part)}
    section.values.update(once(work, "finetune-model", decided_by, (FINAL,), lambda folder: _make(work, folder)))
    if part is None:
        method = work.recipe.method
        section.skipped = f"method {method.name} trains by itself" if method else "the recipe has no recover part"
    before = mask_hash(work.plans(CUT))
    after, shapes = mask_hash(work.plans(FINAL)), shape_hash(work.final())
    section.values.update(mask_hash_before=before, mask_hash_after=after)
    section.values["zeros_before"], _ = count_zeros(work.weights_of(CUT))
    section.values["zeros_after"], _ = count_zeros(work.weights_of(FINAL))
    section.must("the mask is the same before and after", before == after, f"{before[:12]} and {after[:12]}")
    section.must("no removed unit came back", shapes == shape_hash(work.cut()), "shapes of all tensors")
    if work.recipe.control and part is not None:
        decided_by = {DENSE: file_digest(work.directory / DENSE), "recover": _plain(part)}
        made = once(work, "finetune-control", decided_by, (CONTROL,), lambda folder: _control(work, part, folder))
        section.values["control"] = made
        section.artefacts["control"] = CONTROL
    return section


def _plain(part: RecoverPart | None) -> Any:
    return part.model_dump(mode="json") if part is not None else None


def _make(work: Work, checkpoints: Path) -> dict[str, Any]:
    """Recover the cut model and write it; returns what the report says of it."""
    part, model = work.recipe.recover, work.cut()
    record: dict[str, Any] = {}
    if part is not None:
        record["recalibrated_batches"] = (
            recalibrate_batchnorm(model, work.calibration(part.recalibrate)) if part.recalibrate else 0
        )
        record.update(_tuned(work, part, model, checkpoints))
    record["metric"] = measured(accuracy(work, model, work.data.validation))
    save(model, work.directory / FINAL, plans=work.plans(CUT), **work.factory())
    return record


def _tuned(work: Work, part: RecoverPart, model: nn.Module, checkpoints: Path) -> dict[str, Any]:
    config, result = _fitted(work, part, model, checkpoints)
    settings = config.to_dict()
    return {
        "optimiser": settings["optimizer"],
        "lr": settings["lr"],
        "schedule": settings["schedule"],
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "early_stop": f"after {settings['patience']} epochs without a better validation"
        if settings["patience"]
        else "none",
        "distillation": settings["distillation"],
        "training": settings,
        **learning(result),
    }


def _fitted(
    work: Work, part: RecoverPart, model: nn.Module, checkpoints: Path
) -> tuple[TrainingConfig, TrainingResult]:
    config = work.training(part)
    data = work.data
    result = fit(
        model,
        data.train,
        config,
        teacher=work.dense() if config.distillation else None,
        validation=data.validation,
        checkpoint=checkpoints,
        progress=work.progress,
    )
    model.cpu().eval()
    return config, result


def _control(work: Work, part: RecoverPart, checkpoints: Path) -> dict[str, Any]:
    """The dense model trained as the cut one, so that training longer is not taken for pruning well."""
    model = work.dense()
    _, result = _fitted(work, part, model, checkpoints)
    save_dense(model, work.directory / CONTROL)
    return {"metric": measured(accuracy(work, model, work.data.validation)), **learning(result)}


def shape_hash(model: nn.Module) -> str:
    """SHA-256 of the names and shapes of all parameters and buffers."""
    text = ";".join(f"{name}{tuple(tensor.shape)}" for name, tensor in sorted(model.state_dict().items()))
    return hashlib.sha256(text.encode()).hexdigest()
