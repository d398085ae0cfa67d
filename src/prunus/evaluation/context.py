"""What a measure is and what it is given: one signature, `measure(context) -> Measurement`, for every measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ..types import Measurement
from .predictions import Predictions, predict

Need = Literal["data", "reference", "example_inputs"]

WHAT_TO_PASS: Mapping[Need, str] = {
    "data": "pass data=, a Split or an iterable of (inputs, targets) batches",
    "reference": "pass reference=, the dense model to compare with",
    "example_inputs": "pass example_inputs=, one batch of inputs (a tensor, tuple or dict) as the model takes them",
}


@dataclass(frozen=True)
class Context:
    """Everything that a measure may read. Measures change nothing in it.

    Attributes:
        model: The model to measure, on its own device; `evaluate` has put it into eval mode.
        data: A Split, or an iterable of (inputs, targets) that can be iterated again.
        reference: The dense model, where a measure compares.
        example_inputs: Inputs for measures that run the model without labels (macs, latency, memory).
        batch_size: Samples per batch taken from a Split; other iterables have their own.
        seed: For whatever a measure draws; `evaluate` also seeds torch, numpy and random with it before each measure.
        options: This measure's options: the defaults in its `Measure`, overridden by what the user gave.
    """

    model: nn.Module
    data: Any = None
    reference: nn.Module | None = None
    example_inputs: Any = None
    batch_size: int = 256
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter (else buffer) lies; the CPU for a model that has neither."""
        first = next(self.model.parameters(), next(self.model.buffers(), None))
        return torch.device("cpu") if first is None else first.device

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """(inputs, targets) batches of `data` as the data give them (normalised, on the data's device)."""
        return batches_of(self.data, self.batch_size)

    def predictions(self) -> Predictions:
        """The model's logits on all of `data`, computed once and shared by every measure of one evaluation."""
        return self._predict("model", self.model)

    def reference_predictions(self) -> Predictions:
        """The reference's logits on the same samples in the same order.

        Raises:
            InputError: no reference, or the data came in another order (or other data) the second time.
        """
        if self.reference is None:
            raise InputError(f"no reference model: {WHAT_TO_PASS['reference']}")
        dense, pruned = self._predict("reference", self.reference), self.predictions()
        if not torch.equal(dense.targets, pruned.targets):
            raise InputError(
                "data: iterating it twice gave different targets, so the two models cannot be compared sample by "
                "sample; pass data in a fixed order (shuffle=False)"
            )
        return dense

    def _predict(self, key: str, model: nn.Module) -> Predictions:
        if key not in self.cache:
            self.cache[key] = predict(model, self.batches(), seed=self.seed)
        return self.cache[key]


MeasureFunction = Callable[[Context], Measurement]


@dataclass(frozen=True)
class Measure:
    """A measure as the table holds it. Calling it checks needs and options, then runs the function.

    Attributes:
        function: Takes a Context whose `options` hold every key of `options` below.
        needs: What the context must have.
        unit: Unit of the value ("1" for ratios and fractions).
        source: Authors, year and arXiv number, or the convention followed.
        better: Which direction is better, or "" where neither is.
        options: Every option with its default: the one place where defaults of measures are written.
    """

    function: MeasureFunction
    needs: tuple[Need, ...] = ()
    unit: str = "1"
    source: str = ""
    better: Literal["higher", "lower", ""] = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, name: str, context: Context, options: Mapping[str, Any]) -> None:
        """Raise InputError if the context lacks something or an option is unknown; `name` is for the message."""
        for need in self.needs:
            if getattr(context, need) is None:
                raise InputError(f"measure {name!r} needs {need}: {WHAT_TO_PASS[need]}")
        for option in options:
            if option not in self.options:
                raise UnknownNameError.of(f"option of measure {name!r}", option, self.options)

    def __call__(self, context: Context, options: Mapping[str, Any] | None = None, *, name: str = "") -> Measurement:
        """Measure. `options` override the defaults (else those already in the context do)."""
        given = dict(context.options) if options is None else dict(options)
        self.check(name or getattr(self.function, "__name__", "?"), context, given)
        return self.function(replace(context, options={**self.options, **given}))


def batches_of(data: Any, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
    """(inputs, targets) batches of a Split (`data.batches(batch_size)`) or of any iterable of pairs.

    Raises:
        InputError: `data` is neither, or an element is not a pair.
    """
    source: Iterable[Any]
    if callable(getattr(data, "batches", None)):
        source = data.batches(batch_size)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping, Tensor)):
        source = data
    else:
        raise InputError(f"data: got {type(data).__name__}; {WHAT_TO_PASS['data']}")
    for batch in source:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise InputError(f"data: a batch is {type(batch).__name__}, not a pair (inputs, targets)")
        yield batch[0], torch.as_tensor(batch[1])
