from __future__ import annotations

import pytest

from .small import TensorSplit, blobs


@pytest.fixture
def held_out() -> TensorSplit:
    return blobs(60, seed=1)
