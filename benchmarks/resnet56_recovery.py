"""ResNet-56 on CIFAR-10 at about half its MACs: cut once, fine-tune, test. For long recoveries.

    PRUNUS_DATA=... python benchmarks/resnet56_recovery.py --criterion l2_norm --epochs 100 --out runs/l2

The held-out validation images select nothing here: the last weights are tested once. Writes result.json and
model.safetensors.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import prunus
from prunus.data import load
from prunus.training import TrainingConfig, fit, recalibrate_batchnorm
from prunus.training.config import Distillation
from prunus.zoo import load_pretrained

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@torch.inference_mode()
def correct(model: nn.Module, split: Any, device: str) -> int:
    """Images classified right."""
    model.eval()
    hits = 0
    for inputs, labels in split.batches(500):
        hits += int((model(inputs.to(device)).argmax(1).cpu() == labels).sum())
    return hits


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--criterion", default="l2_norm")
    parser.add_argument("--scope", default="group")
    parser.add_argument("--normalise", default="mean")
    parser.add_argument("--macs", type=float, default=0.47)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--alpha", type=float, default=0.9, help="share of the teacher in the loss")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--validation", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load("cifar10", validation=options.validation)
    train, test = (dataclasses.replace(split, **IMAGENET) for split in (data.train, data.test))
    dense = load_pretrained("resnet56").to(device)
    example = next(iter(train.batches(2)))[0].to(device)
    graph = prunus.trace(dense, example)
    statistics = None
    if options.criterion.startswith("taylor"):
        batches = train.batches(256, shuffle=True, seed=options.seed)
        statistics = prunus.collect(dense, batches, [options.criterion], graph=graph, max_batches=20)
    scores = prunus.score(graph, options.criterion, statistics, model=dense, seed=options.seed)
    plan = prunus.plan(graph, scores, target={"macs": options.macs}, scope=options.scope, normalise=options.normalise)
    model = prunus.apply(dense, plan)
    recalibrated = copy.deepcopy(model)
    recalibrate_batchnorm(recalibrated, train.batches(500, shuffle=True), max_batches=20)
    config = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup=1 if options.epochs > 5 else 0,
        seed=options.seed,
        compile=options.compile,
        distillation=Distillation(weight=options.alpha, temperature=options.temperature) if options.alpha else None,
    )
    start = time.perf_counter()
    teacher = copy.deepcopy(dense).eval() if options.alpha else None
    result = fit(model, train, config, teacher=teacher, progress=True, checkpoint=options.out / "checkpoint")
    minutes = (time.perf_counter() - start) / 60
    report = {
        "options": {k: str(v) for k, v in vars(options).items()},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "precision": str(result.execution.precision),
        "train_images": len(train),
        "macs": [plan.before.macs, plan.after.macs],
        "macs_cut": round(1 - plan.after.macs / plan.before.macs, 4),
        "parameters": [plan.before.parameters, plan.after.parameters],
        "minutes": round(minutes, 2),
        "dense_correct": correct(dense, test, device),
        "recalibrated_correct": correct(recalibrated, test, device),
        "final_correct": correct(model, test, device),
        "images": len(test),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(report, indent=2))
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, options.out / "model.safetensors")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
