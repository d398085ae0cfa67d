"""Numbers as people read them: a few significant digits, the right prefix, the unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

NOTHING = "–"
SPACE = "\u00a0"  # keeps a number and its unit on one line
LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def number(value: object) -> float | None:
    """The value if it is a finite number, else None (a bool is no number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def significant(value: float, digits: int = 3) -> str:
    """Plain notation with so many significant digits; powers of ten only where plain notation would be unreadable.

    >>> significant(1234.5), significant(0.0123456), significant(2.0), significant(1.5e-9)
    ('1,234', '0.0123', '2.00', '1.50e-09')
    """
    if value == 0:
        return "0"
    if value < 0:
        return f"−{significant(-value, digits)}"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def count(value: float) -> str:
    """A number of things: exact below ten thousand, then with a prefix and four digits.

    >>> count(853018), count(64), count(125485696)
    ('853.0\\xa0k', '64', '125.5\\xa0M')
    """
    if abs(value) < 1e4:
        return f"{value:,.0f}" if float(value).is_integer() else significant(value)
    return _prefixed(value, LARGE, "", 4)


def tick(value: float) -> str:
    """A number at an axis: as short as it can be said.

    >>> tick(25e6), tick(1.5e6), tick(0), tick(40)
    ('25\\xa0M', '1.5\\xa0M', '0', '40')
    """
    factor, prefix = next(((f, p) for f, p in LARGE if abs(value) >= f), (1.0, ""))
    return f"{value / factor:g}{SPACE}{prefix}" if prefix else f"{value:g}"


def percent(value: float, digits: int = 2) -> str:
    """A fraction as a percentage.

    >>> percent(0.93591), percent(0.5, 0)
    ('93.59%', '50%')
    """
    return f"{100 * value:.{digits}f}%"


def points(value: float) -> str:
    """A difference of two fractions in percentage points, with its sign.

    >>> points(-0.0018), points(0.0025)
    ('−0.18 points', '+0.25 points')
    """
    written = f"{100 * abs(value):.2f}"
    sign = "" if float(written) == 0 else "−" if value < 0 else "+"
    return f"{sign}{written} points"


def times(value: float) -> str:
    """A factor.

    >>> times(2.0914)
    '2.09×'
    """
    return f"{significant(value)}×"


def _prefixed(value: float, table: tuple[tuple[float, str], ...], unit: str, digits: int = 3) -> str:
    size = abs(value)
    factor, prefix = next(((f, p) for f, p in table if size >= f), table[-1])
    if size == 0:
        factor, prefix = 1.0, ""
    shown = significant(value / factor, digits)
    return f"{shown}{SPACE}{prefix}{unit}" if prefix or unit else shown


def _bytes(value: float) -> str:
    return _prefixed(value, LARGE[1:], "B") if abs(value) >= 1e3 else f"{value:.0f}{SPACE}B"


def _with(unit: str) -> Callable[[float], str]:
    return lambda value: f"{significant(value)}{SPACE}{unit}"


UNITS: Mapping[str, Callable[[float], str]] = {
    "": significant,
    "1": significant,
    "fraction": percent,
    "probability": percent,
    "%": lambda value: f"{value:.2f}%",
    "bytes": _bytes,
    "byte": _bytes,
    "B": _bytes,
    "parameters": count,
    "parameter": count,
    "macs": count,
    "MACs": count,
    "FLOPs": count,
    "operations": count,
    "kWh": lambda value: _prefixed(value * 1e3, SMALL, "Wh"),
    "Wh": lambda value: _prefixed(value, SMALL, "Wh"),
    "kg": lambda value: _prefixed(value * 1e3, SMALL, "g"),
    "J": lambda value: _prefixed(value, SMALL, "J"),
    "J/sample": lambda value: _prefixed(value, SMALL, "J/sample"),
    "nat": lambda value: f"{significant(value)}{SPACE}nats",
    "x": times,
    "×": times,
    "ratio": times,
    "points": lambda value: points(value / 100),
}
"""How a value in that unit is shown. A unit that is not listed is written after the number."""


def quantity(value: object, unit: str = "") -> str:
    """A value with its unit, or a dash where there is none.

    >>> quantity(3412345, "bytes"), quantity(0.9359, "fraction"), quantity(4.2712, "ms"), quantity(None, "ms")
    ('3.41\\xa0MB', '93.59%', '4.27\\xa0ms', '–')
    """
    known = number(value)
    return NOTHING if known is None else UNITS.get(unit, _with(unit))(known)


def span(low: float, high: float, unit: str = "") -> str:
    """From low to high, with the unit said once where it is the same.

    >>> span(0.742, 7.06, "ms"), span(0.9641, 0.9923, "fraction"), span(512, 2e6, "bytes")
    ('0.742 to 7.06\xa0ms', '96.41% to 99.23%', '512\xa0B to 2.00\xa0MB')
    """
    first, last = quantity(low, unit), quantity(high, unit)
    said, _, sign = first.partition(SPACE)
    return f"{said if sign and last.endswith(SPACE + sign) else first} to {last}"


def duration(seconds: object) -> str:
    """Seconds as people say them.

    >>> duration(0.42), duration(0.004), duration(75), duration(7325), duration(None)
    ('0.42 s', 'under 0.01 s', '1 min 15 s', '2 h 2 min', '–')
    """
    known = number(seconds)
    if known is None:
        return NOTHING
    if 0 < known < 0.01:
        return "under 0.01 s"
    if known < 60:
        return f"{significant(known, 2 if known < 10 else 3)} s"
    whole = round(known)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
