"""Energy of inference and the carbon dioxide that it stands for.

Energy is measured by repeating inference for a while between two readings of a meter (see `power`), with the idle power
of before taken off where the meter is a hardware counter. Counters tick every 10 to 100 ms and see everything that runs
on the machine: leave it alone meanwhile, and give it 30 seconds or more for a number to publish.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError, UnknownNameError
from ..types import Measurement, Spread
from .context import Context, Measure
from .hardware import describe, device_of, precision_of, synchroniser
from .inputs import bind, rebatch
from .power import JOULES_PER_KWH, Meter, find_meter
from .state import eval_mode


@dataclass(frozen=True)
class GridIntensity:
    """Carbon dioxide equivalents per electrical energy of a grid.

    Attributes:
        kg_per_kwh: Of electricity generated.
        source: Who published it.
        year: That it holds for.
    """

    kg_per_kwh: float
    source: str
    year: int


_OWID = "Our World in Data / Ember, as CodeCarbon 3.3 ships it"

INTENSITIES: Mapping[str, GridIntensity] = {
    "world": GridIntensity(0.475, "International Energy Agency, Global Energy & CO2 Status Report 2019", 2018),
    "usa": GridIntensity(0.369, _OWID, 2023),
    "usa-strubell": GridIntensity(
        0.4327, "0.954 lb/kWh: Strubell et al. 2019, arXiv 1906.02243, after the US EPA", 2018
    ),
    "eu": GridIntensity(0.25, "European Environment Agency, rounded", 2022),
    "france": GridIntensity(0.056, _OWID, 2023),
    "germany": GridIntensity(0.381, _OWID, 2023),
    "china": GridIntensity(0.582, _OWID, 2023),
    "india": GridIntensity(0.713, _OWID, 2023),
    "uk": GridIntensity(0.238, _OWID, 2023),
}
"""Grids by name. Yours is not among them? Pass kilograms per kWh instead of a name."""

AVERAGE_DATA_CENTRE_PUE = 1.58
"""Power usage effectiveness that Strubell et al. 2019 (arXiv 1906.02243) use; 1.0 is a machine on its own."""


def intensity_of(grid: str | float) -> GridIntensity:
    """A grid's intensity by its name in `INTENSITIES`, or kilograms per kWh as given.

    Raises:
        InputError: unknown name, or a negative number.
    """
    if isinstance(grid, str):
        if grid not in INTENSITIES:
            raise UnknownNameError.of("grid", grid, INTENSITIES)
        return INTENSITIES[grid]
    if not grid >= 0:
        raise InputError(f"intensity: got {grid}; kg CO2e per kWh is needed, >= 0, or one of {', '.join(INTENSITIES)}")
    return GridIntensity(float(grid), "given by the user", time.gmtime().tm_year)


def co2_kg(kwh: float, *, pue: float = 1.0, intensity: str | float = "world") -> float:
    """Kilograms of CO2 equivalents: kWh at the machine x power usage effectiveness x grid intensity.

    >>> round(co2_kg(0.1, pue=1.58), 6)  # 100 W for an hour in an average data centre
    0.07505
    """
    if not pue >= 1:
        raise InputError(f"pue: got {pue}; the facility's power over the machines' is needed, >= 1")
    return kwh * pue * intensity_of(intensity).kg_per_kwh


def amortisation(prune_kwh: float, dense_kwh: float, pruned_kwh: float) -> float:
    """How many inferences it takes until pruning has saved the energy that it cost: E_prune / (E_dense - E_pruned).

    Args:
        prune_kwh: Energy of pruning and fine-tuning.
        dense_kwh: Energy of one inference of the dense model.
        pruned_kwh: Energy of one inference of the pruned model.

    Returns:
        Number of inferences; infinity if the pruned model saves nothing.

    >>> round(amortisation(1.0, 1.5e-6, 1.0e-6))  # 0.5 mWh saved each time
    2000000
    """
    saved = dense_kwh - pruned_kwh
    return prune_kwh / saved if saved > 0 else math.inf


@dataclass(frozen=True)
class EnergyProtocol:
    """How long what is repeated.

    Attributes:
        batch: Samples per forward pass.
        seconds: Of work per model, over all repeats together; 30 or more for numbers to publish.
        repeats: Stretches that the seconds are cut into; models take turns, and the range over them is the spread.
        idle_seconds: Of idling before, to learn the power that is not the work's.
    """

    batch: int = 32
    seconds: float = 5.0
    repeats: int = 3
    idle_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.seconds > 0 or not self.idle_seconds > 0:
            raise InputError(
                f"energy: got repeats={self.repeats}, seconds={self.seconds}, idle_seconds={self.idle_seconds}; "
                "repeats >= 1 and both times > 0 are needed"
            )


@dataclass(frozen=True)
class EnergyUse:
    """Energy of one model's inference.

    Attributes:
        joules: Per sample, of each repeat, the idle power taken off if it is known.
        gross_joules: Per sample over all repeats, idle power included.
        samples: That were run.
        seconds: That they took.
    """

    joules: tuple[float, ...]
    gross_joules: float
    samples: int
    seconds: float

    @property
    def median(self) -> float:
        """Joules per sample, the median of the repeats."""
        return statistics.median(self.joules)


def energy_of_calls(
    calls: Mapping[str, Callable[[], Any]],
    meter: Meter,
    protocol: EnergyProtocol,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    synchronise: Callable[[], None] = lambda: None,
) -> tuple[dict[str, EnergyUse], float | None]:
    """Energy per sample of callables that each process `protocol.batch` samples, measured in turns.

    Returns:
        The use of each, and the idle power in watts; None, and nothing taken off, where the meter is a model: a model's
        idle power is a constant of its own.
    """
    for call in calls.values():
        call()
    synchronise()
    idle = _idle_watts(meter, protocol.idle_seconds, clock, sleep) if meter.basis == "measured" else None
    stretches: dict[str, list[tuple[float, float, int]]] = {name: [] for name in calls}
    for _ in range(protocol.repeats):
        for name, call in calls.items():
            stretches[name].append(_stretch(call, meter, protocol, clock, synchronise))
    return {name: _use(found, idle or 0.0) for name, found in stretches.items()}, idle


def _idle_watts(meter: Meter, seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> float:
    start = clock()
    with meter.open() as reading:
        sleep(seconds)
    return reading.joules / (clock() - start)


def _stretch(
    call: Callable[[], Any],
    meter: Meter,
    protocol: EnergyProtocol,
    clock: Callable[[], float],
    synchronise: Callable[[], None],
) -> tuple[float, float, int]:
    """(joules, seconds, samples) of calling for the seconds of one repeat."""
    samples, wanted = 0, protocol.seconds / protocol.repeats
    with meter.open() as reading:
        start = now = clock()
        while now - start < wanted:
            call()
            synchronise()
            samples += protocol.batch
            now = clock()
    return reading.joules, now - start, samples


def _use(stretches: Sequence[tuple[float, float, int]], idle: float) -> EnergyUse:
    net = tuple((joules - idle * seconds) / samples for joules, seconds, samples in stretches)
    joules, seconds, samples = (sum(column) for column in zip(*stretches))
    return EnergyUse(net, joules / samples, int(samples), seconds)


@dataclass(frozen=True)
class _Found:
    """What the two measures of one evaluation share: the uses, or why there are none."""

    uses: Mapping[str, EnergyUse]
    meter: str
    basis: str
    idle: float | None
    reasons: tuple[str, ...]


def _find(context: Context, protocol: EnergyProtocol) -> _Found:
    tdp = context.options["tdp_watts"]
    key = f"energy {protocol} {tdp}"
    if key not in context.cache:
        meter, reasons = find_meter(context.device, tdp_watts=tdp)
        if meter is None:
            context.cache[key] = _Found({}, "", "", None, reasons)
        else:
            uses, idle = _models_in_turns(context, meter, protocol)
            context.cache[key] = _Found(uses, meter.name, meter.basis, idle, reasons)
    return context.cache[key]


def _models_in_turns(
    context: Context, meter: Meter, protocol: EnergyProtocol
) -> tuple[dict[str, EnergyUse], float | None]:
    models: dict[str, nn.Module] = {"model": context.model}
    if context.reference is not None:
        if device_of(context.reference) != context.device:
            raise InputError(f"reference: on {device_of(context.reference)}, but model on {context.device}")
        models = {"reference": context.reference, **models}
    inputs = rebatch(context.example_inputs, protocol.batch)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode())
        calls = {name: bind(model, inputs) for name, model in models.items()}
        return energy_of_calls(calls, meter, protocol, synchronise=synchroniser(context.device))


def _protocol(options: Mapping[str, Any]) -> EnergyProtocol:
    return EnergyProtocol(
        int(options["batch"]), float(options["seconds"]), int(options["repeats"]), float(options["idle_seconds"])
    )


def _energy(context: Context) -> Measurement:
    """Joules per sample. Options: those of `EnergyProtocol`, and `tdp_watts` for a model of the power."""
    protocol = _protocol(context.options)
    found = _find(context, protocol)
    if not found.uses:
        return Measurement("energy", None, "J/sample", f"not measured: {'; '.join(found.reasons)}")
    use = found.uses["model"]
    details = {
        "basis": found.basis,
        "meter": found.meter,
        "better_meters_missing": list(found.reasons),
        "idle_watts": found.idle,
        "batch": protocol.batch,
        "kwh_per_sample": use.median / JOULES_PER_KWH,
        "models": {
            name: {
                "joules_per_sample": u.median,
                "repeats": list(u.joules),
                "gross_joules_per_sample": u.gross_joules,
                "samples": u.samples,
                "seconds": u.seconds,
            }
            for name, u in found.uses.items()
        },
        "hardware": describe(context.device),
    }
    idle = "" if found.idle is None else f", {found.idle:.1f} W of idle power taken off"
    how = (
        f"{found.basis}: {found.meter}{idle}; {use.seconds:.1f} s of inference in {protocol.repeats} repeats, "
        f"batch {protocol.batch}, {precision_of(context.model)}"
    )
    if not use.median > 0:
        return Measurement("energy", None, "J/sample", f"not measured: not above idle power; {how}", details=details)
    spread = Spread(min(use.joules), max(use.joules), "range over repeats", protocol.repeats)
    return Measurement("energy", use.median, "J/sample", how, spread, details)


def _co2(context: Context) -> Measurement:
    """Grams of CO2 equivalents per million samples, from the energy measured with the same options.

    Options: those of energy, and `pue`, `intensity` (a name in `INTENSITIES` or kg/kWh), `prune_kwh` (what pruning
    cost, for the number of inferences after which it has paid off).
    """
    grid, pue = intensity_of(context.options["intensity"]), float(context.options["pue"])
    co2_kg(0.0, pue=pue)
    protocol = _protocol(context.options)
    energy = _energy(context)
    if energy.value is None:
        return Measurement("co2", None, "g/million samples", energy.how)
    uses = _find(context, protocol).uses
    kwh = {name: use.median / JOULES_PER_KWH for name, use in uses.items()}
    grams = {name: 1e9 * co2_kg(value, pue=pue, intensity=grid.kg_per_kwh) for name, value in kwh.items()}
    details: dict[str, Any] = {
        "kg_per_kwh": grid.kg_per_kwh,
        "source": grid.source,
        "year": grid.year,
        "pue": pue,
        "models": grams,
        "basis": energy.details["basis"],
    }
    if context.options["prune_kwh"] is not None and "reference" in kwh:
        pays_off = amortisation(float(context.options["prune_kwh"]), kwh["reference"], kwh["model"])
        details["inferences_until_paid_off"] = pays_off if math.isfinite(pays_off) else None
    factor = 1e9 / JOULES_PER_KWH * pue * grid.kg_per_kwh
    spread = energy.spread and Spread(
        energy.spread.low * factor, energy.spread.high * factor, energy.spread.kind, energy.spread.n
    )
    how = f"energy x {grid.kg_per_kwh} kg/kWh ({grid.source}, {grid.year}) x PUE {pue:g}; {energy.how}"
    return Measurement("co2", grams["model"], "g/million samples", how, spread, details)


_OPTIONS: Mapping[str, Any] = {"batch": 32, "seconds": 5.0, "repeats": 3, "idle_seconds": 2.0, "tdp_watts": None}

MEASURES: Mapping[str, Measure] = {
    "energy": Measure(_energy, needs=("example_inputs",), unit="J/sample", better="lower", options=_OPTIONS),
    "co2": Measure(
        _co2,
        needs=("example_inputs",),
        unit="g/million samples",
        better="lower",
        options={**_OPTIONS, "pue": 1.0, "intensity": "world", "prune_kwh": None},
    ),
}
