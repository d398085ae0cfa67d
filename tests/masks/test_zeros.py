from __future__ import annotations

import torch
from torch import nn

from prunus import sparsify
from prunus.masks import attach, masks_of, zero_masks, zeros_held


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3))
    return sparsify(net, sparsity={"0": 0.5, "2": 0.3}).finalize()


def trained(net: nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(10, 6)).square().sum().backward()
        optimizer.step()


def test_masks_are_where_the_weights_are_not_zero():
    net = model()
    found = zero_masks(net)
    assert set(found) == {"0.weight", "2.weight"}
    assert all(torch.equal(mask, net.get_parameter(name) != 0) for name, mask in found.items())
    attach(net, {"3.weight": torch.eye(3, dtype=torch.bool)})
    assert torch.equal(zero_masks(net)["3.weight"], torch.eye(3, dtype=torch.bool))
    assert set(zero_masks(net, keep=["0"])) == {"2.weight", "3.weight"}


def test_zeros_stay_zero_and_the_rest_learns():
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with zeros_held(net) as masks:
        trained(net)
    assert not masks_of(net)
    for name, mask in masks.items():
        weight = net.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight[mask] != before[name][mask]).all()
    assert list(net.state_dict()) == list(before)
    trained(net)
    assert all((net.get_parameter(name)[~mask] != 0).any() for name, mask in masks.items())  # held no longer


def test_masks_from_before_come_back():
    net = model()
    worn = torch.eye(3, dtype=torch.bool)
    attach(net, {"3.weight": worn})
    with zeros_held(net):
        trained(net)
    assert list(masks_of(net)) == ["3.weight"]
    assert torch.equal(masks_of(net)["3.weight"], worn)
    assert int((net[0].weight == 0).sum()) == 24


def test_zeros_are_held_when_the_training_fails():
    net = model()
    try:
        with zeros_held(net):
            trained(net)
            raise RuntimeError
    except RuntimeError:
        pass
    assert not masks_of(net)
    assert int((net[0].weight == 0).sum()) == 24
