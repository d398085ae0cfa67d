"""The same on a GPU: everything stays on the model's device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunus.surgery import load, prune, save

from .helpers import SmallNet, lively

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("inplace", [False, True])
def test_prune_save_and_load_stay_on_the_device(tmp_path: Path, inplace: bool):
    model = lively(SmallNet()).eval()
    expected = prune(model, torch.randn(2, 3, 8, 8), ratio=0.5).model
    state = torch.cuda.get_rng_state()
    result = prune(lively(SmallNet()).eval().cuda(), torch.randn(2, 3, 8, 8, device="cuda"), ratio=0.5, inplace=inplace)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    loaded = load(save(result, tmp_path / "saved"), SmallNet().cuda())
    for cut in (result.model, loaded):
        for name, tensor in cut.state_dict().items():
            assert tensor.is_cuda, name
            assert torch.equal(tensor.cpu(), expected.state_dict()[name]), name
