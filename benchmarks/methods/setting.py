"""What every method of the benchmark is given: one trained network, its data, budgets, and one recovery for all."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunus
from prunus import statistics
from prunus.data import load
from prunus.data.split import Split
from prunus.graph.counting import size_of
from prunus.methods import Task
from prunus.statistics.curvature import FORMS
from prunus.training import TrainingConfig, fit, recalibrate_batchnorm
from prunus.types import Graph, Scores, Statistics
from prunus.zoo import PRETRAINED, load_pretrained

NETWORK = "resnet20"

MACS = (0.75, 0.5, 0.35)
"""Budgets of filter methods: the share of the dense network's multiply-accumulates that stays."""

SPARSITY = (0.5, 0.8, 0.9)
"""Budgets of weight methods: the share of the weights of convolutions and linear layers that are zero."""

BUDGETS: Mapping[str, tuple[float, ...]] = {"filter": MACS, "weight": SPARSITY}

EPOCHS, TRAIN_IMAGES, BATCH = 4, 1280, 64
"""A recovery is 4 passes over the same 1,280 training images, augmented: 80 steps of 64 images."""

CALIBRATION_BATCHES, CALIBRATION_BATCH = 8, 64
"""Statistics come from 512 training images, drawn with the seed."""

RECALIBRATION_BATCHES, RECALIBRATION_BATCH = 5, 128
"""Batch norm is estimated anew on 640 of the training images after every cut."""


def config(seed: int = 0, epochs: int = EPOCHS) -> TrainingConfig:
    """The recovery: SGD with momentum, learning rate 0.02 falling to 0 in a cosine."""
    return TrainingConfig(
        epochs=epochs, batch_size=BATCH, lr=0.02, weight_decay=5e-4, seed=seed, precision="bf16",
        memory_format="channels_last", device="cpu",
    )  # fmt: skip


Measured = tuple[str, int, int]
"""(need or criterion, seed, batches that it was measured on)"""


@dataclass
class Setting:
    """The network and its data, with what was measured of them so far: statistics are shared by all methods.

    Attributes:
        dense: the trained network, never changed.
        train: the images that methods train on, estimate batch norm on and read.
        pool: all training images, from which statistics are drawn. validation: images that select.
        test: all test images, normalised, and their labels.
        seconds: what each statistic took. pruned: networks that took long to make, and how long.
    """

    dense: nn.Module
    train: Split
    pool: Split
    validation: Split
    test: tuple[Tensor, Tensor]
    example: Tensor
    graph: Graph
    seconds: dict[Measured, float] = field(default_factory=dict)
    pruned: dict[tuple[Any, ...], tuple[nn.Module, float]] = field(default_factory=dict)
    _statistics: dict[Measured, Statistics] = field(default_factory=dict)
    _scores: dict[Measured, Scores] = field(default_factory=dict)

    @classmethod
    def prepare(cls, test_images: int | None = None) -> Setting:
        """Load network and data; `test_images` are all by default, fewer only for trials."""
        dense = load_pretrained(NETWORK)
        data = load("cifar10", validation=0.02).normalised(*PRETRAINED[NETWORK].normalisation)
        test = data.test if test_images is None else data.test.subset(test_images)
        parts = list(test.batches(1000))
        inputs = torch.cat([inputs for inputs, _ in parts])
        example = inputs[:2].clone()
        inputs = inputs.to(torch.bfloat16, memory_format=torch.channels_last)
        return cls(
            dense, data.train.subset(TRAIN_IMAGES), data.train, data.validation, (inputs, test.targets), example,
            prunus.trace(dense, example),
        )  # fmt: skip

    def calibration(self, seed: int, batches: int = CALIBRATION_BATCHES) -> list[tuple[Tensor, Tensor]]:
        """The batches that statistics are collected from."""
        return list(islice(self.pool.batches(CALIBRATION_BATCH, shuffle=True, seed=seed), batches))

    def task(self, seed: int, *, epochs: int = 0, **amount: Any) -> Task:
        """For `prunus.methods.run`: the same network, images and recovery for every whole method."""
        return Task(
            self.dense, self.example, self.train, self.validation, training=config(seed, epochs), seed=seed, **amount
        )

    def statistics(self, needs: frozenset[str] | set[str], seed: int, batches: int = CALIBRATION_BATCHES) -> Statistics:
        """What criteria need, measured once for each seed."""
        values: dict[str, Any] = {}
        for need in sorted(needs):
            key = need, seed, batches
            if key not in self._statistics:
                start = time.perf_counter()
                self._statistics[key] = self._measured(*key)
                self.seconds[key] = time.perf_counter() - start
            values.update(self._statistics[key].values)
        return Statistics(values, batches, batches * CALIBRATION_BATCH)

    def _measured(self, need: str, seed: int, batches: int) -> Statistics:
        if need in FORMS:
            return statistics.hessian_diagonal(self.dense, self.calibration(seed), form=need, probes=2, seed=seed)
        if need in OTHERS:
            return OTHERS[need](self, seed)
        return prunus.collect(self.dense, self.calibration(seed, batches), [need], graph=self.graph, seed=seed)

    def scores(self, criterion: str, seed: int, batches: int = CALIBRATION_BATCHES) -> Scores:
        """Of every unit by a criterion, computed once for each seed."""
        key = criterion, seed, batches
        if key not in self._scores:
            found = self.statistics(prunus.CRITERIA[criterion].data_needs, seed, batches)
            self._scores[key] = prunus.score(
                self.graph, criterion, found, model=self.dense, fallback="l2_norm", seed=seed
            )
        return self._scores[key]

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """The model with batch-norm statistics estimated anew; in place."""
        recalibrate_batchnorm(model, self.train.batches(RECALIBRATION_BATCH), max_batches=RECALIBRATION_BATCHES)
        return model

    def recovered(self, model: nn.Module, seed: int) -> nn.Module:
        """A copy of the model after the recovery that is the same for all."""
        model = copy.deepcopy(model)
        fit(model, self.train, config(seed), progress=False)
        return model

    def macs(self, model: nn.Module) -> float:
        """Multiply-accumulates, as a share of the dense network's."""
        return size_of(prunus.trace(model, self.example)).macs / size_of(self.graph).macs

    def ratio(self, macs: float) -> float:
        """The share of the units of every layer that goes for a budget, where all layers lose the same."""
        low, high = 0.0, 1.0
        scores = self.scores("l2_norm", 0)
        for _ in range(20):
            middle = (low + high) / 2
            left = prunus.plan(self.graph, scores, ratio=middle).after.macs / size_of(self.graph).macs
            low, high = (middle, high) if left > macs else (low, middle)
        return high


def _influence(setting: Setting, seed: int) -> Statistics:
    responses = statistics.final_responses(setting.dense, setting.graph, setting.calibration(seed))
    final = statistics.infinite_feature_selection(responses)
    return statistics.propagated_importance(setting.dense, setting.graph, final, example_inputs=setting.example)


def _input_norms(setting: Setting, seed: int) -> Statistics:
    """The L2 norm of each input channel of every layer over all examples and places."""
    squares: dict[str, Tensor] = {}

    def see(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].transpose(0, 1).flatten(1).square().sum(1)
            squares[f"{name}.weight"] = squares.get(f"{name}.weight", 0.0) + x

        return hook

    batches = setting.calibration(seed)
    with _hooked(setting.dense, see), torch.no_grad():
        for inputs, _ in batches:
            setting.dense(inputs)
    norms = {name: value.sqrt() for name, value in squares.items()}
    return Statistics({"input_norm": norms}, len(batches), sum(len(target) for _, target in batches))


@contextmanager
def _hooked(model: nn.Module, see: Any) -> Iterator[None]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [layer.register_forward_pre_hook(see(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


OTHERS: Mapping[str, Any] = {
    "propagated_importance": _influence,
    "relevance": lambda setting, seed: statistics.relevance(
        setting.dense, setting.graph, setting.calibration(seed)[:2]
    ),
    "loss_change": lambda setting, seed: statistics.loss_change(
        setting.dense, setting.graph, setting.calibration(seed)[:2]
    ),
    "gradient_flow": lambda setting, seed: statistics.gradient_flow(setting.dense, setting.calibration(seed)),
    "synaptic_gradient": lambda setting, seed: statistics.synaptic_gradient(setting.dense, setting.example),
    "input_norm": _input_norms,
}
"""Statistics that are not part of one pass of `prunus.collect`."""


@torch.inference_mode()
def right(model: nn.Module, test: tuple[Tensor, Tensor], batch: int = 125) -> np.ndarray:
    """Which test images the model gets right, as bool (images,). Computed in bfloat16, which halves the time."""
    model = copy.deepcopy(model).eval().bfloat16()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    inputs, labels = test
    hits = [model(inputs[i : i + batch]).argmax(1) == labels[i : i + batch] for i in range(0, len(labels), batch)]
    return torch.cat(hits).numpy()
