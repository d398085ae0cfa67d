"""What the steps share: the recipe, the run directory, and the objects that names and files stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..criteria import CRITERIA, Criterion, criterion_of
from ..data import DataSource
from ..data import load as load_data
from ..graph import trace
from ..surgery import load as load_saved
from ..surgery import read_plans
from ..training import TrainingConfig
from ..types import Graph, Plan
from . import names
from .directory import RunDirectory, digest, file_digest
from .recipe import Recipe, TrainPart

DENSE = "dense/model.safetensors"
CONTROL = "control/model.safetensors"
SCORES = "scores.safetensors"
CUT = "pruned"
FINAL = "final"
EXAMPLES = 4
"""Samples in the example inputs: two or more, so that the batch does not look like a broadcast axis."""


class Work:
    """One run's recipe, directory and report, and lazily everything that is made from them.

    Models are built afresh on each call, so that a step can change the one that it holds.
    """

    def __init__(self, recipe: Recipe, directory: RunDirectory, report: dict[str, Any], progress: bool = False) -> None:
        self.recipe = recipe
        self.directory = directory
        self.report = report
        self.progress = progress
        self.inputs_hash = ""
        self.surroundings: dict[str, Any] = {}

    def sources(self) -> dict[str, Any]:
        """Hashes of what the run starts from: the data, and the files of the model."""
        model = self.recipe.model
        found: dict[str, Any] = {"data hashes": dict(self.data.hashes)}
        if model.weights is not None:
            found["weights file"] = file_digest(names.weights_file(model.weights, self.recipe.data.root))
        if Path(model.name).is_dir():
            found["model directory"] = file_digest(model.name)
        return found

    # ------------------------------------------------------------------------------------------------- data and names

    @cached_property
    def data(self) -> DataSource:
        """The three splits, normalised as the recipe says."""
        part = self.recipe.data
        data = load_data(part.spec, seed=self.recipe.seed, validation=part.validation, root=part.root, limit=part.limit)
        if part.mean is not None and part.std is not None:
            data = data.normalised(part.mean, part.std)
        return data

    @cached_property
    def example(self) -> Tensor:
        """A few real training inputs, as the model takes them."""
        return next(iter(self.data.train.batches(EXAMPLES)))[0]

    @cached_property
    def criterion(self) -> Criterion:
        """The recipe's criterion with its parameters."""
        part = self.recipe.prune
        return criterion_of(names.criterion_named(part.criterion), **part.parameters)

    @property
    def criterion_is_published(self) -> bool:
        """Whether the criterion comes from the package's own table, with its paper."""
        return bool(self.recipe.prune.criterion in CRITERIA and self.criterion.paper)

    def training(self, part: TrainPart, **changes: Any) -> TrainingConfig:
        """The training configuration of a part of the recipe; the run's seed where it names none."""
        return TrainingConfig.from_dict({"seed": self.recipe.seed, **part.training, **changes})

    def calibration(self, batches: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training data, in a shuffled but fixed order, not augmented: never validation, never test."""
        count = self.recipe.prune.calibration_batches if batches is None else batches
        shuffled = self.data.train.batches(self.recipe.data.batch, shuffle=True, seed=self.recipe.seed)
        for _, batch in zip(range(count), shuffled):
            yield batch

    # --------------------------------------------------------------------------------------------------------- models

    def build(self) -> nn.Module:
        """The model as the recipe names it: its factory, and the weights file if there is one."""
        part = self.recipe.model
        model = names.build_model(part.name, part.kwargs)
        if part.weights is not None:
            names.load_weights(model, names.weights_file(part.weights, self.recipe.data.root))
        return model.eval()

    def dense(self) -> nn.Module:
        """The dense model of step 1, from its file."""
        model = names.build_model(self.recipe.model.name, self.recipe.model.kwargs)
        names.load_weights(model, self.directory / DENSE)
        return model.eval()

    def cut(self) -> nn.Module:
        """The cut model of step 5, before any recovery, from its files."""
        return load_saved(self.directory / CUT, self.dense()).eval()

    def final(self) -> nn.Module:
        """The model of step 6, from its files."""
        return load_saved(self.directory / FINAL, self.dense()).eval()

    def control(self) -> nn.Module:
        """The dense model that was fine-tuned as long as the cut one, from its file."""
        model = names.build_model(self.recipe.model.name, self.recipe.model.kwargs)
        names.load_weights(model, self.directory / CONTROL)
        return model.eval()

    @cached_property
    def graph(self) -> Graph:
        """What is connected in the dense model."""
        return trace(self.dense(), self.example, keep=self.recipe.prune.keep)

    # -------------------------------------------------------------------------------------------------- plans and files

    def rules(self) -> dict[str, Any]:
        """How units may be chosen, as arguments of `prunus.plan`."""
        part = self.recipe.prune
        return {name: getattr(part, name) for name in ("scope", "normalise", "round_to", "min_keep", "max_ratio")}

    def factory(self) -> dict[str, Any]:
        """How `prunus.save` is told to build the dense model."""
        return names.factory_of(self.recipe.model.name, self.recipe.model.kwargs)

    def plans(self, folder: str) -> tuple[Plan, ...]:
        """The plans in a folder that step 5 or 6 wrote, oldest first."""
        return read_plans(self.directory / folder)

    def weights_of(self, folder: str) -> Path:
        """The safetensors file in a folder that step 5 or 6 wrote."""
        return self.directory / folder / "model.safetensors"

    def checkpoints(self, key: str) -> Path:
        """Where a step keeps what it needs to go on after an interruption; emptied when the step is done."""
        return self.directory / "checkpoints" / f"{key}-{self.inputs_hash[:12]}"


def mask_hash(plans: Iterable[Plan]) -> str:
    """SHA-256 of which units of which group stay, round by round."""
    return digest([[[cut.group, cut.size, list(cut.keep)] for cut in plan.cuts] for plan in plans])
