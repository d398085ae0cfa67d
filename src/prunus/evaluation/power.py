"""Meters of electrical energy: hardware counters where the system lets them be read, models of the power where not.

A meter is opened around work and tells the joules that went by. `basis` says which kind it is: "measured" is a counter
in the hardware; "modelled" is constants times utilisation times time, which holds no more than its constants do. On a
virtual machine only models remain.

    meter, reasons = find_meter(torch.device("cpu"))
    with meter.open() as reading:
        work()
    reading.joules
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import InputError

JOULES_PER_KWH = 3.6e6
RAM_WATTS_PER_GB = 0.375
"""CodeCarbon's convention: 3 W for 8 GB, whatever they do."""
POWERCAP = Path("/sys/class/powercap")


@dataclass
class Reading:
    """What a meter told: `joules` between opening and closing it, NaN while it is open."""

    joules: float = math.nan


@dataclass(frozen=True)
class Meter:
    """A way to learn the energy of a stretch of time.

    Attributes:
        name: What is read, with the constants of a model.
        basis: "measured" by hardware, or "modelled".
        open: Gives a context; its Reading is filled in on leaving.
    """

    name: str
    basis: Literal["measured", "modelled"]
    open: Callable[[], AbstractContextManager[Reading]]


class NoMeter(Exception):
    """This meter is not to be had here; says why."""


def trapezoid(watts: Sequence[float], at: Sequence[float]) -> float:
    """Energy of sampled power in joules: sum of (P_i + P_{i+1}) / 2 * (t_{i+1} - t_i).

    Args:
        watts: Power at each sample.
        at: Time of each sample in seconds, not descending.

    Raises:
        InputError: not one time per power, or times that go back.

    >>> trapezoid([0, 50, 100], [0, 5, 10])
    500.0
    """
    if len(watts) != len(at) or any(after < before for before, after in zip(at, at[1:])):
        raise InputError(f"trapezoid: {len(watts)} powers at {len(at)} times; one time per power is needed, ascending")
    steps = zip(zip(watts, watts[1:]), zip(at, at[1:]))
    return float(sum((p0 + p1) / 2 * (t1 - t0) for (p0, p1), (t0, t1) in steps))


def counter_difference(before: float, after: float, modulus: float) -> float:
    """How far a counter that starts again at `modulus` went, if it did so at most once.

    >>> counter_difference(90, 5, 100)
    15
    """
    return after - before if after >= before else after - before + modulus


def rapl_meter(root: Path = POWERCAP) -> Meter:
    """The energy counters of CPU packages and their memory (RAPL, through Linux' powercap files).

    A counter wraps around after minutes at full power; one wrap per stretch is seen through.

    Raises:
        NoMeter: there are none, or they may not be read (most systems let only root).
    """
    domains = _rapl_domains(root)
    if not domains:
        raise NoMeter(f"no RAPL counters in {root}")
    try:
        ranges = [_microjoules(domain / "max_energy_range_uj") for domain in domains]
        for domain in domains:
            _microjoules(domain / "energy_uj")
    except (OSError, ValueError) as error:
        raise NoMeter(f"RAPL counters cannot be read: {error}") from None

    @contextmanager
    def opened() -> Iterator[Reading]:
        reading = Reading()
        before = [_microjoules(domain / "energy_uj") for domain in domains]
        yield reading
        after = [_microjoules(domain / "energy_uj") for domain in domains]
        reading.joules = sum(map(counter_difference, before, after, ranges)) / 1e6

    names = ", ".join((domain / "name").read_text(encoding="utf8").strip() for domain in domains)
    return Meter(f"RAPL counters ({names})", "measured", opened)


def _rapl_domains(root: Path) -> list[Path]:
    """Packages, and the memory inside them, which the package's counter leaves out; cores and uncore it includes."""
    named = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            named[folder] = (folder / "name").read_text(encoding="utf8").strip()
        except OSError:
            continue
    return [folder for folder, name in named.items() if name.startswith("package") or name == "dram"]


def _microjoules(path: Path) -> float:
    return float(path.read_text(encoding="utf8"))


def nvml_meter(device: torch.device) -> Meter:
    """The energy counter of an NVIDIA GPU, or its power sampled every 50 ms where it has no counter.

    Raises:
        NoMeter: not such a device, no driver, or nvidia-ml-py is not installed.
    """
    if device.type != "cuda":
        raise NoMeter(f"NVML reads NVIDIA GPUs, not {device.type!r}")
    try:
        import pynvml
    except ImportError:
        raise NoMeter("NVML needs nvidia-ml-py (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return sampled_meter("NVML power", lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    except pynvml.NVMLError as error:
        raise NoMeter(f"NVML: {error}") from None

    @contextmanager
    def opened() -> Iterator[Reading]:
        reading = Reading()
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        yield reading
        reading.joules = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1000

    return Meter("NVML energy counter", "measured", opened)


def sampled_meter(
    name: str, watts: Callable[[], float], *, every: float = 0.05, clock: Callable[[], float] = time.perf_counter
) -> Meter:
    """A meter that samples a power in a thread of its own and integrates it by trapezoids.

    Args:
        name: What is read.
        watts: The power now.
        every: Seconds between samples.
    """

    @contextmanager
    def opened() -> Iterator[Reading]:
        reading, done = Reading(), threading.Event()
        samples = [(clock(), watts())]

        def sample() -> None:
            while not done.wait(every):
                samples.append((clock(), watts()))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield reading
        finally:
            done.set()
            thread.join()
        samples.append((clock(), watts()))
        reading.joules = trapezoid([power for _, power in samples], [at for at, _ in samples])

    return Meter(f"{name}, sampled every {1000 * every:g} ms", "measured", opened)


def tdp_meter(
    tdp_watts: float,
    *,
    ram_gb: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Meter:
    """A model: TDP times this process's share of all cores times time, plus a constant per GB of memory.

    Args:
        tdp_watts: Thermal design power of the processor, from its data sheet.
        ram_gb: Memory that counts; None takes all of the machine's.
    """
    if not tdp_watts > 0:
        raise InputError(f"tdp_watts: got {tdp_watts}; the processor's thermal design power in watts is needed, > 0")
    cores = os.cpu_count() or 1
    memory = _memory_gb() if ram_gb is None else ram_gb

    @contextmanager
    def opened() -> Iterator[Reading]:
        reading = Reading()
        wall, cpu = clock(), cpu_clock()
        yield reading
        wall, cpu = clock() - wall, cpu_clock() - cpu
        reading.joules = tdp_watts * cpu / cores + RAM_WATTS_PER_GB * memory * wall

    name = f"{tdp_watts:g} W TDP x share of {cores} cores + {RAM_WATTS_PER_GB} W/GB x {memory:.1f} GB of memory"
    return Meter(name, "modelled", opened)


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return 0.0


def codecarbon_meter() -> Meter:
    """CodeCarbon's offline tracker of the whole machine: no network, no files, nothing logged.

    Raises:
        NoMeter: it is not installed.
    """
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        raise NoMeter("CodeCarbon is not installed (pip install 'prunus[energy]')") from None

    @contextmanager
    def opened() -> Iterator[Reading]:
        reading = Reading()
        with _silenced("codecarbon"):
            # The country only matters for emissions, which are computed elsewhere, from a table that can be seen.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # save_to_file; its successor came with version 3.3
                tracker: Any = OfflineEmissionsTracker(
                    country_iso_code="USA",
                    measure_power_secs=1,
                    save_to_file=False,
                    log_level="critical",
                    allow_multiple_runs=True,
                )
            tracker.start()
            try:
                yield reading
            finally:
                tracker.stop()
        reading.joules = tracker.final_emissions_data.energy_consumed * JOULES_PER_KWH

    return Meter(
        "CodeCarbon's model of this machine (processor table x utilisation, constant memory)", "modelled", opened
    )


@contextmanager
def _silenced(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    was = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = was


def together(meters: Sequence[Meter]) -> Meter:
    """The sum of several meters that read different parts of a machine; modelled if any part is."""

    @contextmanager
    def opened() -> Iterator[Reading]:
        total = Reading()
        with ExitStack() as stack:
            readings = [stack.enter_context(meter.open()) for meter in meters]
            yield total
        total.joules = sum(reading.joules for reading in readings)

    basis = "modelled" if any(meter.basis == "modelled" for meter in meters) else "measured"
    return Meter(" + ".join(meter.name for meter in meters), basis, opened)


def find_meter(
    device: torch.device, *, tdp_watts: float | None = None, root: Path = POWERCAP
) -> tuple[Meter | None, tuple[str, ...]]:
    """The best meter for a device: counters of the GPU and of the CPU, else a model of the power.

    Args:
        device: Where the work is done.
        tdp_watts: The processor's thermal design power; given, it comes before CodeCarbon's guess.
        root: Where the powercap files are.

    Returns:
        The meter, or None; and why each better one could not be had.
    """
    finders: list[Callable[[], Meter]] = [lambda: rapl_meter(root)]
    if device.type == "cuda":
        finders.insert(0, lambda: nvml_meter(device))
    counters: list[Meter] = []
    reasons: list[str] = []
    for find in finders:
        try:
            counters.append(find())
        except NoMeter as reason:
            reasons.append(str(reason))
    # A GPU's work is not in the CPU's counter, so the CPU's alone would be the wrong number, not half of the right one.
    if counters and (device.type == "cpu" or counters[0].name.startswith("NVML")):
        return together(counters), tuple(reasons)
    if device.type == "cpu" and tdp_watts is not None:
        return tdp_meter(tdp_watts), tuple(reasons)
    try:
        return codecarbon_meter(), tuple(reasons)
    except NoMeter as reason:
        return None, (*reasons, str(reason))
