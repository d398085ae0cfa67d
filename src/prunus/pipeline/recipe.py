"""What a run is told: the fields of a recipe, their types and their defaults.

Reading a file, overriding fields and turning Pydantic's errors into sentences is in `loading.py`; names (models, data
sets, criteria) become objects in `names.py`. This file imports no torch, so that the command line starts fast.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = float


class Part(BaseModel):
    """Base of every part: unknown fields are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(Part):
    """Which network, and where its weights come from."""

    name: str
    """`zoo:NAME`, `package.module:factory`, `timm:NAME`, `torchvision:NAME`, `hf:PATH_OR_ID`, or a saved directory."""
    weights: str | None = None
    """A .safetensors file, relative to the recipe or to the data folder (PRUNUS_DATA)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the factory."""


class DataPart(Part):
    """Which data, how much of it validates, and how pixels are normalised."""

    spec: str
    """`digits`, `mnist`, `cifar10`, `npz:PATH`, `folder:PATH` or `package.module:factory`."""
    root: str | None = None
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training samples that selects; never trained on."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples per split."""
    mean: tuple[float, ...] | None = None
    """Per channel, in pixel units of [0, 1]; replaces the data set's own."""
    std: tuple[float, ...] | None = None
    batch: int = Field(default=256, ge=1)
    """Batch size of evaluation and of calibration."""

    @model_validator(mode="after")
    def _both_or_none(self) -> DataPart:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or none")
        if self.std is not None and any(value <= 0 for value in self.std):
            raise ValueError(f"std must be above 0 in every channel, got {self.std}")
        return self


class Floors(Part):
    """What a run must not fall below; the step that measures it fails otherwise."""

    validation_accuracy: Fraction | None = Field(default=None, ge=0, le=1)
    """Of the dense model on validation data (step 1)."""
    retention: Fraction | None = Field(default=None, ge=0)
    """Accuracy on test data after recovery over that of the dense model (step 7)."""


class Objective(Part):
    """The budget, the floors, and which points around the result to draw."""

    target: dict[Literal["macs", "params", "bytes", "latency", "max_drop"], float | str] | None = None
    """Fractions of the dense model (0.4) or amounts ("60M", "1.5MB", "8ms"); `max_drop` is a fraction of accuracy.
    Several together: all must hold."""
    floors: Floors = Floors()
    curve: tuple[Fraction, ...] = ()
    """Further MAC budgets, as fractions of dense, for the curve of accuracy against MACs (validation data)."""
    curve_epochs: int = Field(default=0, ge=0)
    """Epochs of recovery at each point of the curve; 0 recalibrates batch norm only."""
    baselines: tuple[str, ...] = ()
    """Criteria drawn beside the recipe's own at the budgets of the curve, e.g. [random]."""

    @field_validator("curve")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [v for v in value if not 0 < v <= 1]
        if wrong:
            raise ValueError(f"budgets of the curve are fractions of the dense MACs in (0, 1], got {wrong}")
        return value


class PrunePart(Part):
    """How units are chosen and removed."""

    criterion: str = "l2_norm"
    """A name from `prunus.CRITERIA`, or `package.module:function`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters of the criterion."""
    scope: Literal["group", "global"] = "global"
    normalise: str = "mean"
    """How scores of different groups are made comparable, for scope global."""
    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of units removed from every group; instead of objective.target."""
    rounds: int = Field(default=1, ge=1)
    """1 prunes at once; k prunes in k steps towards the target, scoring afresh each time."""
    round_epochs: int = Field(default=0, ge=0)
    """Epochs of recovery after each round but the last; 0 recalibrates batch norm only."""
    keep: tuple[str, ...] = ()
    """Names of modules or groups that are never cut."""
    round_to: int = Field(default=1, ge=1)
    """Widths become multiples of this."""
    min_keep: int = Field(default=1, ge=1)
    """Units that every group keeps."""
    max_ratio: float = Field(default=1.0, gt=0, le=1)
    """Largest share of its units that a group may lose."""
    calibration_batches: int = Field(default=8, ge=1)
    """Batches of training data for criteria that need statistics."""


class MethodPart(Part):
    """A whole method of the literature that takes the place of `prune` and `recover`; see `prunus methods`."""

    name: str
    """Its id, such as `snip`."""
    amount: float | None = Field(default=None, gt=0, lt=1)
    """How much goes: a fraction of the weights or of the units, as the method says; absent where it finds it itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the method: keywords of its function."""
    start: Literal["auto", "initial", "dense"] = "auto"
    """Begin with the network as `model` builds it, or with the dense one of step 1; auto: the former for methods at
    initialisation and during training."""
    training: dict[str, Any] | None = None
    """Fields of the training configuration; those of `train` when absent."""


class EvaluatePart(Part):
    """What is measured in step 7, beside accuracy."""

    measures: tuple[str, ...] = ("accuracy", "ece", "nll", "brier")
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of single measures: {name: {option: value}}."""
    train_samples: int = Field(default=10_000, ge=1)
    """At most this many training samples for the training metric."""


class TrainPart(Part):
    """Training of the dense model from nothing: any field of `prunus.training.TrainingConfig`, checked there."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def training(self) -> dict[str, Any]:
        """The fields of the training configuration."""
        return dict(self.model_extra or {})


class RecoverPart(TrainPart):
    """Fine-tuning of the cut model: fields of the training configuration, among them `distillation`, and these."""

    recalibrate: int = Field(default=0, ge=0)
    """Batches of training data that batch-norm statistics are estimated from anew before training; 0 leaves them."""


class DevicePart(Part):
    """The device that the result is meant for, or the limits that stand in for it."""

    platform: Literal["cpu", "gpu", "mcu", "fpga", "npu"] = "cpu"
    threads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of threads that latency is measured with; 1 and all cores (at most 4) when empty."""
    batch: int = Field(default=1, ge=1)
    memory_limit: str | None = None
    """Address space of one more measurement in a process of its own, e.g. "512MB"."""
    warmup: int = Field(default=10, ge=0)
    """Runs before the timed ones."""
    repeats: int = Field(default=50, ge=5)
    """Timed runs per latency."""
    channel_multiple: int = Field(default=1, ge=1)
    """Widths that the device handles without padding; violations are reported."""


class ExportPart(Part):
    """Which files are written besides the plan and the safetensors."""

    onnx: bool = True
    int8: bool = True
    """Static quantisation by ONNX Runtime, calibrated on training data."""
    calibration_samples: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _int8_needs_onnx(self) -> ExportPart:
        if self.int8 and not self.onnx:
            raise ValueError("int8 is made from the ONNX file: set onnx to true, or int8 to false")
        return self


class ReportPart(Part):
    """The HTML page."""

    html: bool = True


class Recipe(Part):
    """Everything that a run is told.

    `train` absent: the model must bring weights. `recover` absent: no fine-tuning (batch norm is left alone too).
    `method` given: it does the work of `prune` and `recover`.
    `control` fine-tunes the dense model for the same number of steps, so that the gain of training longer is known.
    """

    title: str = ""
    seed: int = Field(default=0, ge=0)
    model: ModelPart
    data: DataPart
    threads: int | None = Field(default=None, ge=1)
    """Threads of everything but the latency measurements; all cores when absent. Part of what makes numbers repeat."""
    train: TrainPart | None = None
    objective: Objective = Objective()
    prune: PrunePart = PrunePart()
    method: MethodPart | None = None
    recover: RecoverPart | None = None
    control: bool = False
    evaluate: EvaluatePart = EvaluatePart()
    device: DevicePart = DevicePart()
    export: ExportPart = ExportPart()
    report: ReportPart = ReportPart()

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_spec(cls, value: Any) -> Any:
        return {"spec": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_amount(self) -> Recipe:
        if self.method is not None:
            return self
        given = [
            name
            for name, it in (("objective.target", self.objective.target), ("prune.ratio", self.prune.ratio))
            if it is not None and it != {}
        ]
        if len(given) != 1:
            was = " and ".join(given) if given else "neither"
            raise ValueError(f"give exactly one of objective.target and prune.ratio; given: {was}")
        return self

    @model_validator(mode="after")
    def _method_stands_alone(self) -> Recipe:
        """A method chooses, cuts and trains by itself; what it would not read must not be there."""
        if self.method is None:
            return self
        plain = PrunePart().model_dump() | {"keep": self.prune.keep}
        unread = {
            "recover": self.recover is not None,
            "control": self.control,
            "prune (all but keep)": self.prune.model_dump() != plain,
            "objective.curve": bool(self.objective.curve),
            "objective.baselines": bool(self.objective.baselines),
        }
        given = [name for name, there in unread.items() if there]
        if given:
            raise ValueError(f"method {self.method.name!r} does not read {', '.join(given)}: leave it out")
        if self.method.amount is not None and self.objective.target:
            raise ValueError("give at most one of objective.target and method.amount")
        return self

    @model_validator(mode="after")
    def _rounds_are_counted(self) -> Recipe:
        target = dict(self.objective.target or {})
        measured = [name for name in ("latency", "max_drop") if name in target]
        if self.prune.rounds > 1 and ("latency" in target or (measured and len(target) == 1)):
            raise ValueError(
                f"prune.rounds is {self.prune.rounds}, but a {measured[0]} budget is found by measuring one cut: "
                "set prune.rounds to 1, or give macs, params or bytes"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, every default filled in."""
        return self.model_dump(mode="json")
