from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus import methods
from prunus.data import load
from prunus.errors import InputError
from prunus.methods.lottery import mask_distance, surviving
from prunus.training import TrainingConfig, fit


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=400)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))


CONFIG = TrainingConfig(epochs=2, lr=0.05, batch_size=64, precision="fp32", memory_format="contiguous", augment=False)


def task(digits, model: nn.Module, **changes) -> methods.Task:
    return methods.Task(
        model, torch.zeros(2, 1, 8, 8), digits.train, digits.validation, **{"training": CONFIG, **changes}
    )


def test_densities_are_powers_masks_are_nested_and_survivors_start_where_they_began(digits):
    model = network()
    outcomes = [methods.run("lottery_imp", task(digits, model), rounds=n, rate=0.2, output_rate=0.2) for n in (1, 2, 3)]
    for n, outcome in enumerate(outcomes, 1):
        kept = sum(int(m.sum()) for m in outcome.masks.values())
        assert kept / 2220 == pytest.approx(0.8**n, abs=2e-3)
        assert [record["density"] for record in outcome.history] == pytest.approx(
            [0.8**k for k in range(n + 1)], abs=2e-3
        )
    for name in outcomes[0].masks:
        assert bool((outcomes[1].masks[name] <= outcomes[0].masks[name]).all())
        assert bool((outcomes[2].masks[name] <= outcomes[1].masks[name]).all())
    still = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 0})
    untrained = methods.run("lottery_imp", task(digits, model, training=still), rounds=1)
    for name, mask in untrained.masks.items():
        assert torch.equal(untrained.model.get_parameter(name)[mask], model.get_parameter(name)[mask])


@pytest.mark.parametrize("rewind_step", [0, 3])
def test_a_rate_of_zero_is_plain_training_bit_for_bit(digits, rewind_step):
    plain = network()
    fit(plain, digits.train, CONFIG, validation=digits.validation, progress=False)
    outcome = methods.run("lottery_imp", task(digits, network()), rounds=1, rate=0.0, rewind_step=rewind_step)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, outcome.model.state_dict()[name])


def test_rewinding_goes_back_to_the_weights_of_that_step(digits):
    steps = 3
    seen = {}

    def note(info):
        if info.step == steps:
            seen.update({n: p.detach().clone() for n, p in info.model.named_parameters()})

    fit(network(), digits.train, CONFIG, progress=False, on_step=note)
    per_epoch = -(-len(digits.train) // 64)
    assert steps < per_epoch
    outcome = methods.run("lottery_imp", task(digits, network()), rounds=1, rewind_step=steps)
    again = network()
    from prunus.masks import attach, masks_of

    attach(again, {name: torch.ones_like(mask) for name, mask in outcome.masks.items()})

    def rewound(info):
        if info.step == steps:
            for name, mask in outcome.masks.items():
                module, _, local = name.rpartition(".")
                held = info.model.get_submodule(module).parametrizations[local].original
                assert torch.equal(held, seen[name])
                masks_of(info.model)[name].copy_(mask)

    fit(again, digits.train, CONFIG, progress=False, on_step=rewound)
    for name, mask in outcome.masks.items():
        module, _, local = name.rpartition(".")
        assert torch.equal(getattr(again.get_submodule(module), local)[mask], outcome.model.get_parameter(name)[mask])


def test_controls_have_as_many_weights_in_each_layer(digits):
    ticket = methods.run("lottery_imp", task(digits, network()), rounds=1)
    for control in ("reinit", "random"):
        outcome = methods.run("lottery_imp", task(digits, network()), rounds=1, control=control)
        for name, mask in outcome.masks.items():
            assert mask.sum() == ticket.masks[name].sum()
            assert torch.equal(mask, ticket.masks[name]) == (control == "reinit")
    with pytest.raises(InputError, match="control"):
        methods.run("lottery_imp", task(digits, network()), control="other")


def test_two_masks_that_differ_in_one_of_ten_positions():
    first = torch.ones(10, dtype=torch.bool)
    second = first.clone()
    second[3] = False
    assert mask_distance(first, second) == pytest.approx(0.1)


def test_the_threshold_is_global():
    assert surviving([torch.tensor([0.1, 0.4]), torch.tensor([-0.3, 0.2])], 0.5).tolist() == [False, True, False, False]


def test_constant_scales_are_drawn_when_the_memory_is_full(digits):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.copy_(torch.linspace(0.2, 2.0, 8))
    still = TrainingConfig.from_dict({**CONFIG.to_dict(), "epochs": 12, "lr": 1e-8})
    outcome = methods.run("early_bird", task(digits, model, amount=0.5, training=still))
    assert outcome.history[0]["drawn_in_epoch"] == 5
    assert outcome.history[0]["found"]
    assert len(outcome.history) == 1 + 7
    widths = outcome.model[0].out_channels + outcome.model[3].out_channels
    assert widths == 8
