"""What every test shares: one thread, fixed seeds, and the folder of real data where there is one."""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prunus.graph.rules import RULES
from prunus.surgery.layers import FOLLOWS

REPOSITORY = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("torchvision") is not None:
    # transformers and torchmetrics import it. A wheel built for another torch lacks its operators and does not import
    # until the schemas of two of them are there.
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for _operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{_operator}", "(Tensor a, Tensor b, float c) -> Tensor")
        for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[_name]

# One thread per worker: sums are then the same from run to run, and parallel workers do not fight for cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Global generators start every test alike, so that no test depends on the one before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _rules_of_a_test_end_with_it() -> Iterator[None]:
    """Rules that a test or an example registers are in force for it alone, whatever order the tests run in."""
    before = [(table, dict(table)) for table in (RULES, FOLLOWS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with cifar10/, mnist/ and pretrained_cifar10/; a test that needs it is skipped without it."""
    given = os.environ.get("PRUNUS_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no real data: {folder} is not a folder (set PRUNUS_DATA to the folder that holds cifar10/, mnist/ ...)"
        )
    return folder
