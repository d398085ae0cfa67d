"""Equal counts in layers of one kind."""

from __future__ import annotations

import torch
from torch import nn

import prunus
from prunus.allocation.uniform import uniform


class Stack(nn.Module):
    """Three residual blocks of one kind and one wider one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, width) for width in (8, 8, 8, 12))
        self.down = nn.ModuleList(nn.Linear(width, 6) for width in (8, 8, 8, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.up, self.down):
            x = x + down(torch.relu(up(x)))
        return x


def made() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Stack()
    with torch.no_grad():
        model.up[0].weight *= 100  # so that a global ranking would spare this layer
        model.down[0].weight *= 100
    return model, torch.randn(2, 6)


def test_groups_of_one_size_whose_names_differ_in_an_index_keep_equal_counts():
    model, x = made()
    graph = prunus.trace(model, x)
    scores = prunus.score(graph, "l2_norm", model=model)
    plan = prunus.plan(graph, scores, ratio=0.5, scope="global", normalise="none", uniform=True)
    kept = {cut.group: len(cut.keep) for cut in plan.cuts}
    widths = [kept.get(f"up.{i}", 8) for i in range(3)]
    assert len(set(widths)) == 1
    free = prunus.plan(graph, scores, ratio=0.5, scope="global", normalise="none")
    freely = {cut.group: len(cut.keep) for cut in free.cuts}
    assert freely.get("up.0", 8) > freely.get("up.1", 8)


def test_what_is_coupled_already_stays_coupled_and_other_sizes_stay_apart():
    model, x = made()
    graph = prunus.trace(model, x)
    once = uniform(graph)
    assert [sorted(c.steps) for c in once.coupled] == [["up.0", "up.1", "up.2"]]
    assert uniform(once).coupled == once.coupled


def test_prune_takes_it_for_any_model():
    model, x = made()
    result = prunus.prune(model, x, ratio=0.5, scope="global", normalise="none", uniform=True)
    assert len({layer.out_features for layer in result.model.up[:3]}) == 1
    assert result.loads_with == "prunus.load"
