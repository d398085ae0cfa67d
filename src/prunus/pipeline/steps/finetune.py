"""Step 6: recovery of the cut model, and the same effort spent on the dense one for comparison."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from ...surgery import save
from ...training import fit, recalibrate_batchnorm
from ..files import count_zeros, save_dense
from ..measuring import accuracy, measured
from ..section import Section
from ..work import CONTROL, CUT, FINAL, Work, mask_hash
from .baseline import learning


def finetune(work: Work) -> Section:
    """Recalibrate and fine-tune the cut model; selection is by validation data alone."""
    part = work.recipe.recover
    before = mask_hash(work.plans(CUT))
    model = work.cut()
    section = Section(artefacts={"model": FINAL})
    if part is None:
        section.skipped = "the recipe has no recover part"
        section.values["metric"] = measured(accuracy(work, model, work.data.validation))
    else:
        batches = recalibrate_batchnorm(model, work.calibration(part.recalibrate)) if part.recalibrate else 0
        section.values["recalibrated_batches"] = batches
        section.values.update(_tuned(work, model))
    save(model, work.directory / FINAL, plans=work.plans(CUT), **work.factory())
    after, shapes = mask_hash(work.plans(FINAL)), shape_hash(work.final())
    section.values.update(mask_hash_before=before, mask_hash_after=after)
    section.values["zeros_before"], _ = count_zeros(work.weights_of(CUT))
    section.values["zeros_after"], _ = count_zeros(work.weights_of(FINAL))
    section.must("the mask is the same before and after", before == after, f"{before[:12]} and {after[:12]}")
    section.must("no removed unit came back", shapes == shape_hash(work.cut()), "shapes of all tensors")
    if work.recipe.control and part is not None:
        section.values["control"] = _control(work, section)
    return section


def _tuned(work: Work, model: nn.Module) -> dict[str, Any]:
    part = work.recipe.recover
    assert part is not None
    config = work.training(part)
    teacher = work.dense() if config.distillation else None
    result = fit(
        model,
        work.data.train,
        config,
        teacher=teacher,
        validation=work.data.validation,
        checkpoint=work.checkpoints("finetune"),
        progress=work.progress,
    )
    model.cpu().eval()
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
        "metric": measured(accuracy(work, model, work.data.validation)),
    }


def _control(work: Work, section: Section) -> dict[str, Any]:
    """The dense model trained as the cut one, so that training longer is not taken for pruning well."""
    part = work.recipe.recover
    assert part is not None
    config = work.training(part)
    model = work.dense()
    result = fit(
        model,
        work.data.train,
        config,
        teacher=work.dense() if config.distillation else None,
        validation=work.data.validation,
        checkpoint=work.checkpoints("finetune") / "control",
        progress=work.progress,
    )
    model.cpu().eval()
    save_dense(model, work.directory / CONTROL)
    section.artefacts["control"] = CONTROL
    return {"metric": measured(accuracy(work, model, work.data.validation)), **learning(result)}


def shape_hash(model: nn.Module) -> str:
    """SHA-256 of the names and shapes of all parameters and buffers."""
    text = ";".join(f"{name}{tuple(tensor.shape)}" for name, tensor in sorted(model.state_dict().items()))
    return hashlib.sha256(text.encode()).hexdigest()
