"""PackNet: the first task's outputs never change, owners partition the weights, and each task is learnt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError, UnknownNameError
from prunus.methods.packnet import NextTask, _only

from .digits import at, load_digits, task


class Relabelled:
    """A split with other labels."""

    def __init__(self, split, rule) -> None:
        self.split, self.rule = split, rule

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, batch_size, **options):
        for inputs, labels in self.split.batches(batch_size, **options):
            yield inputs, self.rule(labels)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 24), nn.ReLU(),
        nn.Linear(24, 10),
    )  # fmt: skip


def share_right(model: nn.Module, split) -> float:
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(256))
    return hits / len(split)


@pytest.fixture(scope="module")
def packed():
    digits = load_digits()
    parity, half = (lambda labels: labels % 2), (lambda labels: (labels > 4).long())
    given = task(digits, network(), amount=0.75, training=at(epochs=6, lr=0.05))
    alone = methods.run("packnet", given)
    more = [NextTask(Relabelled(digits.train, rule), classes=2) for rule in (parity, half)]
    return digits, alone, methods.run("packnet", given, more=more), (parity, half)


def test_the_first_task_is_the_same_to_the_bit_after_others_were_learnt(packed):
    digits, alone, three, _ = packed
    inputs = next(iter(digits.test.batches(64)))[0]
    before, after = alone.network(1).eval(), three.network(1).eval()
    with torch.no_grad():
        assert torch.equal(before(inputs), after(inputs))
        assert not torch.equal(three.network(2).eval()(inputs)[:, :2], three.network(3).eval()(inputs)[:, :2])


def test_owners_partition_the_weights_and_the_capacity_falls_by_a_quarter_of_what_is_left(packed):
    _, _, three, _ = packed
    for name, owner in three.owners.items():
        left = owner.numel()
        for number in (1, 2, 3):
            freed = round(0.75 * left)
            assert int((owner == number).sum()) == left - freed
            left = freed
        assert int((owner == 0).sum()) == left
        assert left == pytest.approx(0.75**3 * owner.numel(), abs=2)
        weight = three.trunk.get_parameter(name)
        assert not weight[owner == 0].any()
        assert int((weight != 0).sum()) <= int((owner > 0).sum())
    assert three.bits_per_weight == 2


def test_every_task_is_learnt(packed):
    digits, _, three, rules = packed
    assert share_right(three.network(1), digits.test) > 0.85
    for number, rule in zip((2, 3), rules):
        assert share_right(three.network(number), Relabelled(digits.test, rule)) > 0.85
    with pytest.raises(InputError, match="task=4"):
        three.network(4)


def test_only_the_tasks_weights_and_its_head_learn():
    model = network()
    owners = {"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.uint8), "4.weight": torch.ones(24, 384, dtype=torch.uint8)}
    owners["4.weight"][:, ::2] = 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    with _only(model, owners, 2, "6") as hold:
        for _ in range(3):
            optimizer.zero_grad()
            model.train()
            model(torch.randn(4, 1, 8, 8)).square().sum().backward()
            optimizer.step()
            hold(None)
    after = model.state_dict()
    assert torch.equal(after["4.weight"][:, 1::2], before["4.weight"][:, 1::2])
    assert not torch.equal(after["4.weight"][:, ::2], before["4.weight"][:, ::2])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"4.weight", "6.weight", "6.bias"}
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_is_refused():
    digits = load("digits", limit=100)
    with pytest.raises(UnknownNameError, match="head="):
        methods.run("packnet", task(digits, network()), head="0")
    with pytest.raises(InputError, match="single layer"):
        methods.run("packnet", task(digits, nn.Linear(64, 10)))
