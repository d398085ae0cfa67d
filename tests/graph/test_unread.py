"""Attributes that one way through the code reads and another does not follow the cut all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus


class Grouped(nn.Module):
    """Attention in which a key serves several queries; a fused kernel finds out by itself how many."""

    def __init__(self, names: tuple[str, str] = ("q_proj", "k_proj")) -> None:
        super().__init__()
        self.head_dim, self.num_key_value_groups, self.fused = 4, 3, True
        self.names = names
        setattr(self, names[0], nn.Linear(8, 24))
        setattr(self, names[1], nn.Linear(8, 8))
        self.v_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for p in (getattr(self, self.names[0]), getattr(self, self.names[1]), self.v_proj)
        )
        if not self.fused:
            k, v = (t.repeat_interleave(self.num_key_value_groups, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.fused)
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("fused", [True, False])
def test_queries_per_key_follow_on_either_way(fused: bool):
    model = Grouped().eval()
    model.fused = fused
    inputs = torch.randn(2, 5, 8)
    ratios = {"q_proj/1": 0.34}
    graph = prunus.trace(model, inputs)
    assert [g.size for g in graph.groups if g.name == "q_proj/1"] == [3]
    plan = prunus.plan(graph, prunus.score(graph, "l2_norm", model=model, fallback="l2_norm"), ratio=ratios)
    cut: Any = prunus.apply(model, plan)
    assert cut.num_key_value_groups == 2
    expected = cut(inputs)
    cut.fused = not fused
    torch.testing.assert_close(cut(inputs), expected)


def test_projections_of_other_names_are_not_guessed_at():
    graph = prunus.trace(Grouped(("first", "second")).eval(), torch.randn(2, 5, 8))
    assert all(a.name != "num_key_value_groups" for a in graph.attributes)
