"""Energy and CO2: the arithmetic of the specification, and the protocol with a fake clock and a fake meter."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
from torch import nn

from prunus.errors import InputError, UnknownNameError
from prunus.evaluation import energy
from prunus.evaluation.context import Context
from prunus.evaluation.energy import (
    INTENSITIES,
    MEASURES,
    EnergyProtocol,
    amortisation,
    co2_kg,
    energy_of_calls,
    intensity_of,
)
from prunus.evaluation.power import JOULES_PER_KWH, Meter, Reading

FAST = {"seconds": 0.03, "repeats": 3, "idle_seconds": 0.01, "batch": 2}


def test_a_hundred_watts_for_an_hour():
    kwh = 100 * 3600 / JOULES_PER_KWH
    assert kwh == pytest.approx(0.1)
    assert co2_kg(kwh, pue=1.58, intensity=0.475) == pytest.approx(0.07505)
    assert co2_kg(kwh, intensity="france") == pytest.approx(0.0056)


def test_pruning_pays_off_after_two_million_inferences():
    assert amortisation(1.0, 1.5e-6, 1.0e-6) == pytest.approx(2_000_000)
    assert amortisation(1.0, 1e-6, 1e-6) == math.inf


def test_every_grid_has_a_source_and_a_year_and_a_plausible_value():
    for grid in INTENSITIES.values():
        assert 0.01 < grid.kg_per_kwh < 1
        assert grid.source
        assert 2015 <= grid.year <= 2030


def test_grids_and_facilities_that_cannot_be_are_refused():
    with pytest.raises(UnknownNameError, match="germany"):
        intensity_of("germny")
    with pytest.raises(InputError, match="intensity"):
        intensity_of(-1.0)
    with pytest.raises(InputError, match="pue"):
        co2_kg(1.0, pue=0.5)
    with pytest.raises(InputError, match="repeats"):
        EnergyProtocol(repeats=0)


class Machine:
    """A machine with a clock, an idle power, and work that takes time and energy beyond it."""

    def __init__(self, idle: float) -> None:
        self.now, self.used, self.idle = 0.0, 0.0, idle

    def clock(self) -> float:
        return self.now

    def passes(self, seconds: float, watts: float = 0.0) -> None:
        self.now += seconds
        self.used += seconds * (self.idle + watts)

    def meter(self, basis: Literal["measured", "modelled"] = "measured") -> Meter:
        @contextmanager
        def opened():
            reading, before = Reading(), self.used
            yield reading
            reading.joules = self.used - before

        return Meter("fake", basis, opened)


def test_energy_per_sample_is_that_of_the_work_and_not_of_idling():
    machine = Machine(idle=30)
    calls = {"dense": lambda: machine.passes(0.5, watts=100), "pruned": lambda: machine.passes(0.25, watts=40)}
    protocol = EnergyProtocol(batch=5, seconds=6, repeats=3, idle_seconds=4)
    uses, idle = energy_of_calls(calls, machine.meter(), protocol, clock=machine.clock, sleep=machine.passes)
    assert idle == pytest.approx(30)
    assert uses["dense"].joules == pytest.approx((10, 10, 10))  # 0.5 s x 100 W / 5 samples
    assert uses["pruned"].joules == pytest.approx((2, 2, 2))
    assert uses["pruned"].gross_joules == pytest.approx(0.25 * 70 / 5)
    assert (uses["dense"].samples, uses["dense"].seconds) == (3 * 4 * 5, 6)


def test_a_model_of_the_power_keeps_its_idle_power():
    machine = Machine(idle=30)
    uses, idle = energy_of_calls(
        {"m": lambda: machine.passes(1, watts=10)},
        machine.meter("modelled"),
        EnergyProtocol(batch=1, seconds=3, repeats=1),
        clock=machine.clock,
        sleep=lambda _: pytest.fail("nothing to learn from idling"),
    )
    assert idle is None
    assert uses["m"].median == pytest.approx(40)


def context(**options) -> Context:
    model, dense = nn.Linear(4, 2).train(), nn.Linear(4, 2)
    return Context(model, reference=dense, example_inputs=torch.randn(1, 4), options={**FAST, **options})


def test_the_measures_say_what_they_rest_on_and_share_the_work(monkeypatch):
    found = []
    monkeypatch.setattr(energy, "find_meter", lambda *a, **k: (found.append(1), (Machine.meter(clocked), ()))[1])
    clocked = Machine(idle=0)
    monkeypatch.setattr(energy, "bind", lambda *a: lambda: clocked.passes(1, watts=36))
    given = context(intensity=0.5, pue=2.0, prune_kwh=1.0)
    options = dict(given.options)
    used = MEASURES["energy"](given, {key: options[key] for key in FAST})
    co2 = MEASURES["co2"](given)
    assert found == [1]
    assert used.value == pytest.approx(18)  # 36 J per batch of two
    assert used.how.startswith("measured: fake")
    assert used.details["kwh_per_sample"] == pytest.approx(5e-6)
    assert co2.value == pytest.approx(5e-6 * 1e6 * 2 * 0.5 * 1000)
    assert co2.details["inferences_until_paid_off"] is None  # both take the same
    assert given.model.training


def test_a_tdp_gives_a_model_that_says_so():
    used = MEASURES["energy"](context(tdp_watts=100.0))
    if used.details.get("basis") == "measured":
        pytest.skip("this machine has counters, which come first")
    assert used.value is not None
    assert used.value > 0
    assert used.how.startswith("modelled: 100 W TDP")
    assert used.details["better_meters_missing"]


def test_without_a_meter_it_is_not_measured_and_says_why(monkeypatch):
    monkeypatch.setattr(energy, "find_meter", lambda *a, **k: (None, ("no counter", "no model")))
    for measure in MEASURES.values():
        found = measure(context())
        assert found.value is None
        assert found.how == "not measured: no counter; no model"


def test_work_that_does_not_show_above_idle_power_is_not_measured(monkeypatch):
    machine = Machine(idle=30)
    monkeypatch.setattr(energy, "find_meter", lambda *a, **k: (machine.meter(), ()))
    monkeypatch.setattr(energy, "bind", lambda *a: lambda: machine.passes(1, watts=-5))
    monkeypatch.setattr(energy, "energy_of_calls", _with_clock_of(machine))
    assert MEASURES["energy"](context()).how.startswith("not measured: not above idle power")


def _with_clock_of(machine: Machine):
    def run(calls, meter, protocol, **_):
        return energy_of_calls(calls, meter, protocol, clock=machine.clock, sleep=machine.passes)

    return run
