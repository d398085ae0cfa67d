"""The entry point: names of measures and a model to measurements, with the model left exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import InputError, UnknownNameError
from ..types import Measurement
from .context import Context, Measure
from .state import eval_mode, left_as_was, seeded
from .table import MEASURES

Given = str | Measure | Callable[[Context], Measurement | float]


def evaluate(
    model: nn.Module,
    data: Any = None,
    measures: Given | Iterable[Given] = ("accuracy", "parameters", "sparsity"),
    *,
    reference: nn.Module | None = None,
    example_inputs: Any = None,
    batch_size: int = 256,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Measurement]:
    """Measure a model.

    The model and the reference are measured in eval mode on their own device and leave with the modes, gradients,
    flags, buffers and random state that they came with, on errors too. Logits on `data` are computed once for all
    measures that read them. Everything is checked before the first measure runs.

    Args:
        model: The model; it returns logits for the measures of accuracy and calibration.
        data: A Split, or an iterable of (inputs, targets) batches, in a fixed order.
        measures: Names in `prunus.evaluation.MEASURES`, or callables that take a `Context` and return a
            `Measurement` or a number.
        reference: The dense model, for measures that compare (agreement, accuracy_drop, compression_ratio ...).
        example_inputs: One batch of inputs, for measures that need no labels (macs, latency ...): a tensor, a tuple
            of positional or a mapping of keyword arguments.
        batch_size: Samples per batch taken from a Split.
        seed: Of everything drawn: each measure starts from it, so its result does not depend on the other measures.
        options: Options by measure, `{"ece": {"bins": 10}}`; each measure's own with their defaults are in the table.

    Returns:
        The measurements by name, in the order asked for.

    Raises:
        UnknownNameError: no measure, or no option, of that name.
        InputError: a measure lacks what it needs (the message says what to pass), or the data do not fit the model.
    """
    if not isinstance(model, nn.Module) or not isinstance(reference, nn.Module | None):
        wrong = "model" if not isinstance(model, nn.Module) else "reference"
        given = model if wrong == "model" else reference
        raise InputError(f"{wrong}: got {type(given).__name__}; a torch.nn.Module would work")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; it must be at least 1")
    chosen = resolve(measures)
    options = {} if options is None else options
    for name in options:
        if name not in chosen:
            raise InputError(f"options: {name!r} is not among the measures asked for: {', '.join(chosen)}")
    if isinstance(data, Iterator):
        data = list(data)  # several measures read it; an iterator would be used up by the first
    context = Context(model, data, reference, example_inputs, batch_size, seed)
    for name, measure in chosen.items():
        measure.check(name, context, options.get(name, {}))
    models = [model] if reference is None or reference is model else [model, reference]
    found: dict[str, Measurement] = {}
    with left_as_was(*models):
        for name, measure in chosen.items():
            # Entered anew for each, so that no measure finds what another one left.
            with left_as_was(*models), seeded(seed), eval_mode(models[0]), eval_mode(models[-1]):
                found[name] = measure(context, options.get(name, {}), name=name)
    return found


def resolve(measures: Given | Iterable[Given]) -> dict[str, Measure]:
    """Measures by name from names and callables.

    Raises:
        UnknownNameError: a name is not in the table.
        InputError: neither a name nor callable, or two of one name.
    """
    single = isinstance(measures, str) or callable(measures)
    listed: list[Any] = [measures] if single else list(measures)  # type: ignore[arg-type]
    found: dict[str, Measure] = {}
    for given in listed:
        name, measure = _resolve_one(given)
        if name in found:
            raise InputError(f"measures: {name!r} is asked for twice")
        found[name] = measure
    return found


def _resolve_one(given: Any) -> tuple[str, Measure]:
    if isinstance(given, str):
        if given not in MEASURES:
            raise UnknownNameError.of("measure", given, MEASURES)
        return given, MEASURES[given]
    if isinstance(given, Measure):
        return getattr(given.function, "__name__", "measure").lstrip("_"), given
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return name, Measure(_measurement_of(name, given))
    raise InputError(f"measures: got {given!r}; a name or a callable that takes a Context would work")


def _measurement_of(name: str, function: Callable[[Context], Any]) -> Callable[[Context], Measurement]:
    def measure(context: Context) -> Measurement:
        result = function(context)
        if isinstance(result, Measurement):
            return result
        try:
            return Measurement(name, float(result), "", "given callable")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"measures: {name} returned {type(result).__name__}; a Measurement or a number would work"
            ) from error

    return measure
