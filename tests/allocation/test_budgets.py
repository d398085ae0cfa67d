from __future__ import annotations

import numpy as np
import pytest

from prunus.allocation.budgets import Budget, budgets_of
from prunus.errors import InputError, UnknownNameError
from prunus.types import Size

DENSE = Size(parameters=1000, macs=2001, bytes=4000)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"macs": 0.5}, [("macs", 1000)]),
        ({"macs": "50%"}, [("macs", 1000)]),
        ({"macs": "12.5 %"}, [("macs", 250)]),
        ({"macs": "0.1"}, [("macs", 200)]),
        ({"macs": np.float32(0.5)}, None),
        ({"macs": np.float64(0.5)}, [("macs", 1000)]),
        ({"params": 1}, [("params", 1000)]),
        ({"params": 640}, [("params", 640)]),
        ({"params": 1e3}, [("params", 1000)]),
        ({"params": "10M"}, [("params", 10_000_000)]),
        ({"params": "7b"}, [("params", 7_000_000_000)]),
        ({"macs": "1.2G"}, [("macs", 1_200_000_000)]),
        ({"macs": "2e3"}, [("macs", 2000)]),
        ({"bytes": "20MB"}, [("bytes", 20_000_000)]),
        ({"bytes": "1.5 KiB"}, [("bytes", 1536)]),
        ({"bytes": "300B"}, [("bytes", 300)]),
        ({"macs": 0.3, "bytes": "1k"}, [("macs", 600), ("bytes", 1000)]),
    ],
)
def test_limits(target, expected):
    if expected is None:  # not a Python number: refused rather than read through its repr
        with pytest.raises(InputError):
            budgets_of(target, DENSE)
        return
    assert budgets_of(target, DENSE) == tuple(Budget(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"macs": 0}, r"macs=0 must be a fraction.*'40M'"),
        ({"macs": -0.5}, "must be a fraction"),
        ({"macs": float("nan")}, "must be a fraction"),
        ({"macs": float("inf")}, "must be a fraction"),
        ({"macs": "120%"}, "must be a fraction"),
        ({"macs": "20MB"}, "must be a fraction"),
        ({"bytes": "20 apples"}, "'20MB'"),
        ({"params": None}, "'10M'"),
        ({"params": True}, "'10M'"),
        ({}, r"\{'macs': 0\.5\}"),
        (0.5, r"\{'macs': 0\.5\}"),
    ],
)
def test_what_cannot_be_read_is_refused_with_examples(target, says):
    with pytest.raises(InputError, match=says):
        budgets_of(target, DENSE)


def test_an_unknown_budget_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'flops'.*bytes, energy, latency, macs, max_drop, params"):
        budgets_of({"flops": 0.5}, DENSE)
