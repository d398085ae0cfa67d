"""Two processes, each with half of the tokens, come to the masks of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunus.errors import InputError
from prunus.language import Processes, sparsify_language

PROGRAM = """
import sys
import torch
from torch import distributed, nn

torch.set_num_threads(1)

class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, hidden):
        return hidden + self.down(torch.tanh(self.up(hidden)))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(60, 8), nn.ModuleList(Part() for _ in range(3))

    def forward(self, ids):
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

from prunus.language import Processes, Sensitivity, sparsify_language

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = Model()
tokens = torch.randint(60, (8, 6), generator=torch.Generator().manual_seed(1))
found = {}
for method, rule in (("wanda", "uniform"), ("sparsegpt", "uniform"), ("wanda", "owl"), ("wanda", Sensitivity(0.1, 3))):
    given = dict(method=method, sparsity=0.5, pattern="unstructured", allocation=rule)
    both = sparsify_language(model, tokens, processes=Processes(), **given)
    alone = sparsify_language(model, tokens, **given)
    for name, mask in alone.masks.items():
        assert torch.equal(mask, both.masks[name]), (method, rule, name)
    found |= {f"{method} {rule} {name}": value for name, value in both.finalize().state_dict().items()}
    for name, value in alone.finalize().state_dict().items():
        torch.testing.assert_close(found[f"{method} {rule} {name}"], value, rtol=1e-4, atol=1e-5)
try:
    sparsify_language(model, tokens[:7], processes=Processes())
except ValueError as error:
    assert "divided equally" in str(error)
else:
    raise AssertionError("7 samples were divided by 2")
others = [None, None]
distributed.all_gather_object(others, found)
assert all(torch.equal(others[0][name], value) for name, value in others[1].items())
assert len(found) > 20
distributed.destroy_process_group()
print("equal")
"""


def test_two_processes_give_the_masks_of_one_and_hold_the_same_weights(tmp_path: Path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert [text.splitlines()[-1] for text in said] == ["equal", "equal"], "\n".join(said)


def test_there_must_be_a_group():
    with pytest.raises(InputError, match="init_process_group"):
        sparsify_language(torch.nn.Linear(2, 2), torch.ones(2, 2), processes=Processes())
