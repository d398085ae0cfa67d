"""Meters: powercap files made by hand, fake clocks, and CodeCarbon kept quiet."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import pytest
import torch

from prunus.errors import InputError
from prunus.evaluation import power
from prunus.evaluation.power import (
    Meter,
    NoMeter,
    codecarbon_meter,
    find_meter,
    nvml_meter,
    rapl_meter,
    sampled_meter,
    tdp_meter,
    together,
    trapezoid,
)

CPU = torch.device("cpu")


def test_trapezoids_of_constant_and_rising_power():
    assert trapezoid([100, 100], [0, 3600]) == 360_000  # 0.1 kWh
    assert trapezoid(range(0, 101, 10), range(11)) == 500  # 0 to 100 W in 10 s
    assert trapezoid([7], [3]) == 0


@pytest.mark.parametrize(("watts", "at"), [([1, 2], [0]), ([1, 2], [1, 0])])
def test_samples_without_their_times_are_refused(watts, at):
    with pytest.raises(InputError, match="trapezoid"):
        trapezoid(watts, at)


def domain(root: Path, folder: str, name: str, microjoules: int, modulus: int = 1_000_000_000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{modulus}\n")
    return path / "energy_uj"


def test_rapl_counts_packages_and_memory_but_not_their_parts_and_sees_through_a_wrap(tmp_path):
    package = domain(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    other = domain(tmp_path, "intel-rapl:1", "package-1", 10)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 5)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 100)
    whole = domain(tmp_path, "intel-rapl:2", "psys", 7)
    meter = rapl_meter(tmp_path)
    with meter.open() as reading:
        package.write_text("2000000")  # 3 J: 1 to the end and 2 after
        other.write_text("5000010")
        core.write_text("900000000")
        whole.write_text("900000000")
        memory.write_text("250100")
    assert reading.joules == pytest.approx(3 + 5 + 0.25)
    assert meter.basis == "measured"
    assert "package-0" in meter.name


def test_rapl_says_why_it_cannot_be_read(tmp_path):
    with pytest.raises(NoMeter, match="no RAPL"):
        rapl_meter(tmp_path)
    domain(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    with pytest.raises(NoMeter, match="cannot be read"):
        rapl_meter(tmp_path)


def test_nvml_is_for_gpus():
    with pytest.raises(NoMeter, match="NVIDIA"):
        nvml_meter(CPU)


def test_a_sampled_power_is_integrated():
    with sampled_meter("lamp", lambda: 100.0, every=0.005).open() as reading:
        time.sleep(0.1)
    assert 10 <= reading.joules < 20


def test_the_tdp_model_is_the_share_of_the_cores_and_a_constant_per_gigabyte(monkeypatch):
    monkeypatch.setattr(power.os, "cpu_count", lambda: 4)
    wall, cpu = iter([0.0, 10.0]), iter([0.0, 20.0])  # 10 s, two of four cores busy
    meter = tdp_meter(80, ram_gb=16, clock=lambda: next(wall), cpu_clock=lambda: next(cpu))
    with meter.open() as reading:
        pass
    assert reading.joules == pytest.approx(80 * 0.5 * 10 + 6 * 10)
    assert meter.basis == "modelled"
    with pytest.raises(InputError, match="tdp_watts"):
        tdp_meter(0)


def constant(name: str, joules: float, basis) -> Meter:
    from contextlib import contextmanager

    @contextmanager
    def opened():
        reading = power.Reading()
        yield reading
        reading.joules = joules

    return Meter(name, basis, opened)


def test_meters_add_up_and_a_sum_with_a_model_is_a_model():
    both = together([constant("a", 2, "measured"), constant("b", 3, "modelled")])
    with both.open() as reading:
        pass
    assert (reading.joules, both.basis, both.name) == (5, "modelled", "a + b")
    assert together([constant("a", 2, "measured")]).basis == "measured"


def test_a_counter_is_preferred_to_a_model(tmp_path):
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    meter, reasons = find_meter(CPU, tdp_watts=50, root=tmp_path)
    assert meter is not None
    assert meter.basis == "measured"
    assert reasons == ()


def test_a_given_tdp_is_preferred_to_a_guess(tmp_path):
    meter, reasons = find_meter(CPU, tdp_watts=50, root=tmp_path)
    assert meter is not None
    assert "50 W TDP" in meter.name
    assert "no RAPL" in reasons[0]


def test_without_any_meter_the_reasons_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    meter, reasons = find_meter(CPU, root=tmp_path)
    assert meter is None
    assert any("RAPL" in reason for reason in reasons)
    assert any("prunus[energy]" in reason for reason in reasons)


def test_codecarbon_writes_and_says_nothing(tmp_path, monkeypatch, capfd, caplog):
    pytest.importorskip("codecarbon", reason="CodeCarbon is not installed")
    monkeypatch.chdir(tmp_path)
    with codecarbon_meter().open() as reading:
        time.sleep(0.2)
    assert reading.joules > 0
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not logging.getLogger("codecarbon").disabled
