"""Blocks are found and called without knowing the family; what is no chain is refused and left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.language import BlockOptions, find_blocks, prune_blocks
from prunus.language.stack import Recorder

IDS = torch.arange(40).reshape(4, 10) * 7 % 57 + 3
HALF = BlockOptions("wanda", "2:4")


class Chain(nn.Module):
    """Takes ids, embeds them, and hands them through blocks in a way that the subclass may spoil."""

    def __init__(self, spoil: str = "") -> None:
        super().__init__()
        self.spoil = spoil
        self.embed = nn.Embedding(60, 8)
        self.blocks = nn.ModuleList(Part() for _ in range(3))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks[: 2 if self.spoil == "count" else 3]:
            if self.spoil == "between":
                hidden = hidden * 2
            hidden = block(hidden, shift=input_ids[..., None].float() if self.spoil == "text" else torch.ones(1))
        return hidden


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return hidden + self.linear(hidden) * shift


@pytest.mark.parametrize(
    ("spoil", "says"),
    [("between", "does more before block"), ("text", "depends on the tokens"), ("count", "2 of its 3")],
)
def test_what_is_no_chain_of_blocks_is_refused_and_left_as_it_was(spoil, says):
    model = Chain(spoil)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=says):
        prune_blocks(model, IDS, HALF, batch=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.training


def test_any_chain_of_blocks_will_do():
    model = Chain()
    with Recorder(model, model.blocks) as recorder:
        assert torch.equal(recorder(IDS), model.embed(IDS))
    results = prune_blocks(model, IDS, HALF, batch=2)
    assert [result.weights[0].zeros for result in results] == [32, 32, 32]
    assert all((block.linear.weight == 0).sum() == 32 for block in model.blocks)


def test_two_stacks_or_none_are_refused():
    with pytest.raises(InputError, match="no list of two or more blocks"):
        find_blocks(nn.Linear(2, 2))
    two = nn.ModuleDict({"encoder": nn.ModuleList(Part() for _ in range(2)), "decoder": Chain().blocks})
    with pytest.raises(InputError, match=r"several stacks of blocks \(decoder, encoder\)"):
        find_blocks(two)
