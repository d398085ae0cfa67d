"""A tensor that a module computed from its parameters and kept does not survive a cut of those parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus


class CachedBias(nn.Module):
    """Adds a bias made from a parameter, which it keeps in eval mode, as attention with relative positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> CachedBias:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.second(self.first(x) + 2 * self.bias)
        if "bias" not in self.kept:
            self.kept["bias"] = (2 * self.bias).detach()
        return self.second(self.first(x) + self.kept["bias"])


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_that_ran_before_the_cut_runs_after_it(inplace):
    torch.manual_seed(0)
    model, x = CachedBias().eval(), torch.randn(2, 4)
    model(x)
    reference = CachedBias().eval()
    reference.load_state_dict(model.state_dict())
    result = prunus.prune(model, x, ratio=0.5, inplace=inplace)
    assert result.model.first.out_features == 4
    keep = list(result.plan.cuts[0].keep)
    with torch.no_grad():
        hidden = (reference.first(x) + 2 * reference.bias)[:, keep]
        expected = hidden @ reference.second.weight[:, keep].T + reference.second.bias
    assert torch.allclose(result.model(x), expected, atol=1e-6)
    assert not result.model.training
    assert inplace or "bias" in model.kept  # the model that was given is left alone
