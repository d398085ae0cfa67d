"""Attacks: exact on linear models, ordered on trained ones, and the model untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunus.data.split import Split
from prunus.errors import InputError
from prunus.evaluation.context import Context
from prunus.evaluation.robustness import BALLS, MEASURES, Pgd, fgsm, input_gradient, pgd, uniform_noise

POSITIVE = torch.tensor([1])


def linear_score(w: list[float]):
    """One logit w.x, a binary classifier: an attack on class 1 lowers the score."""
    return lambda x: x @ torch.tensor(w)[:, None]


def test_fgsm_lowers_a_linear_score_by_eps_times_the_l1_norm():
    logits, x = linear_score([1.0, -2.0]), torch.tensor([[0.5, 0.5]])
    changed = fgsm(lambda v: logits(v)[:, 0], x, POSITIVE, eps=0.1)
    torch.testing.assert_close(changed, torch.tensor([[0.4, 0.6]]))
    torch.testing.assert_close(logits(changed), torch.tensor([[-0.8]]))


@pytest.mark.parametrize("steps", [4, 20])
def test_pgd_reaches_the_same_on_a_linear_score(steps):
    logits, x = linear_score([1.0, -2.0]), torch.tensor([[0.5, 0.5]])
    changed = pgd(lambda v: logits(v)[:, 0], x, POSITIVE, Pgd(eps=0.1, step=0.1, steps=steps))
    torch.testing.assert_close(logits(changed), torch.tensor([[-0.8]]))


def test_pgd_in_the_l2_ball_lowers_a_linear_score_by_eps_times_the_l2_norm():
    logits, x = linear_score([3.0, -4.0]), torch.tensor([[0.5, 0.5]])
    changed = pgd(lambda v: logits(v)[:, 0], x, POSITIVE, Pgd(eps=0.1, step=0.05, steps=60, ball="l2"))
    torch.testing.assert_close(logits(changed), torch.tensor([[-0.5 - 0.5]]), atol=1e-4, rtol=0)


def test_an_attack_uses_the_pixels_range_and_no_more():
    logits = linear_score([1.0, -2.0])
    changed = fgsm(lambda v: logits(v)[:, 0], torch.tensor([[0.05, 0.95]]), POSITIVE, eps=0.1)
    assert torch.equal(changed, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("ball", BALLS)
def test_every_random_start_and_projection_stays_in_its_ball(ball):
    norm = {"linf": float("inf"), "l2": 2.0}[ball]
    drawn = BALLS[ball].draw(torch.empty(500, 3, 4), 0.3, torch.Generator().manual_seed(0))
    lengths = drawn.flatten(1).norm(norm, dim=1)
    assert lengths.max() <= 0.3 + 1e-6
    assert lengths.mean() > 0.25  # in many dimensions most of a ball lies near its surface
    assert drawn.mean().abs() < 0.01
    projected = BALLS[ball].project(torch.randn(50, 3, 4), 0.3).flatten(1).norm(norm, dim=1)
    assert projected.max() <= 0.3 + 1e-6
    inside = torch.full((2, 3), 0.01)
    torch.testing.assert_close(BALLS[ball].project(inside, 0.3), inside)


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, nn.Module, Split]:
    """Two small trained networks (one wide, one narrow) and blobs in [0, 1] whose classes nearly touch."""
    torch.manual_seed(0)
    centres = torch.rand(4, 1, 4, 4)
    y = torch.arange(400) % 4
    x = (centres[y] + 0.15 * torch.randn(400, 1, 4, 4)).clamp(0, 1)
    data = Split(x, y, (0.5,), (0.25,))
    models = []
    for width in (32, 8):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(40):
            for inputs, targets in data.batches(100):
                optimiser.zero_grad()
                functional.cross_entropy(model(inputs), targets).backward()
                optimiser.step()
        optimiser.zero_grad()
        models.append(model)
    return models[0], models[1], data


def measured(name: str, model: nn.Module, data, reference: nn.Module | None = None, **options) -> Any:
    context = Context(model, data, reference, batch_size=128, options={"eps": 0.1, "samples": 200, **options})
    return MEASURES[name](context)


def test_pgd_hurts_more_than_fgsm_and_fgsm_more_than_noise(task):
    model, _, data = task
    found = {name: measured(name, model, data, eps=0.2) for name in MEASURES}
    accuracy, clean = {name: m.value for name, m in found.items()}, found["pgd"].details["clean_accuracy"]
    assert accuracy["pgd"] <= accuracy["fgsm"] < accuracy["noise"] <= clean + 0.01
    assert clean > 0.95
    assert accuracy["fgsm"] < 0.8  # otherwise the order above says little


def test_more_steps_and_restarts_never_help_the_model(task):
    model, _, data = task
    one, many, again = (
        measured("pgd", model, data, steps=steps, restarts=restarts).value
        for steps, restarts in ((1, 1), (20, 1), (20, 3))
    )
    assert again <= many <= one


def test_changes_stay_within_eps_and_the_range(task):
    model, _, data = task
    x, y = data.inputs[:50], data.targets[:50]
    for attack, norm in ((Pgd(eps=0.2, steps=5), float("inf")), (Pgd(eps=0.2, steps=5, ball="l2"), 2.0)):
        changed = pgd(model.eval(), x, y, attack)
        assert (changed - x).flatten(1).norm(norm, dim=1).max() <= 0.2 + 1e-6
        assert changed.min() >= 0
        assert changed.max() <= 1
    assert (uniform_noise(x, 0.2, torch.Generator().manual_seed(0))).abs().max() <= 0.2


@pytest.mark.parametrize("name", MEASURES)
def test_without_change_the_clean_accuracy_remains(name, task):
    model, _, data = task
    found = measured(name, model, data, eps=0.0)
    assert found.value == found.details["clean_accuracy"]


@pytest.mark.parametrize("name", MEASURES)
def test_the_same_seed_gives_the_same_number_and_the_model_is_untouched(name, task):
    model, _, data = task
    model.train()
    model[1].weight.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (measured(name, model, data) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    model[1].weight.requires_grad_(True)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_examples_made_on_either_model_are_read_by_both(name, task):
    dense, pruned, data = task
    found = measured(name, pruned, data, reference=dense)
    transfer = found.details["transfer"]
    assert transfer["model"]["model"] == found.value
    assert transfer["reference"]["reference"] == measured(name, dense, data).value
    assert transfer["model"]["model"] <= transfer["reference"]["model"]  # foreign examples mislead less
    assert transfer["reference"]["reference"] <= transfer["model"]["reference"]


def test_the_sweep_falls_with_eps_and_holds_the_headline(task):
    model, _, data = task
    found = measured("fgsm", model, data, sweep=(0.05, 0.2))
    assert [row["eps"] for row in found.details["sweep"]] == [0.05, 0.1, 0.2]
    accuracies = [row["accuracy"] for row in found.details["sweep"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found.value == accuracies[1]
    assert found.spread is not None
    assert found.spread.low < found.value < found.spread.high


def test_hidden_gradients_are_suspected(task):
    class Rounds(nn.Module):
        """Rounds its inputs finely: right as before, but with no slope to follow."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner((x * 4).round() / 4 + 0 * x)

    model, _, data = task
    found = measured("fgsm", Rounds(model), data, eps=0.25)
    assert found.value is not None
    assert found.value > found.details["noise_accuracy"]
    assert found.details["gradient_masking_suspected"]
    assert not measured("fgsm", model, data).details["gradient_masking_suspected"]


def test_what_cannot_be_attacked_is_refused():
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
    with pytest.raises(InputError, match="no gradient"):
        input_gradient(lambda v: torch.ones(3, 2), x, y)
    with pytest.raises(InputError, match="eps"):
        fgsm(lambda v: v, x, y, eps=-0.1)
    refused: list[dict[str, Any]] = [{"ball": "l7"}, {"steps": 0}, {"restarts": 0}, {"step": 0.0}]
    for wrong in refused:
        with pytest.raises(InputError, match="pgd"):
            Pgd(**wrong)
