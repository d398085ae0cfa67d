from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.errors import ShapeError
from prunus.training import attention_map, attention_transfer, distillation_loss, soft_target_loss

LN3 = math.log(3)


def test_identical_logits_cost_nothing_and_pull_nowhere():
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    loss = soft_target_loss(student, student.detach().clone(), temperature=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_soft_targets_by_hand():
    # T = 1: teacher (3/4, 1/4), student (1/4, 3/4): 3/4 ln 3 + 1/4 ln 1/3 = ln 3 / 2.
    student, teacher = torch.tensor([[0.0, LN3]]).double(), torch.tensor([[LN3, 0.0]]).double()
    assert soft_target_loss(student, teacher, temperature=1.0).item() == pytest.approx(LN3 / 2)
    # T = 2: odds of sqrt(3) instead of 3, and the factor 4.
    root = math.sqrt(3)
    by_hand = 4 * (root - 1) / (root + 1) * (LN3 / 2)
    assert soft_target_loss(student, teacher, temperature=2.0).item() == pytest.approx(by_hand)


def test_soft_targets_against_probabilities_written_out():
    student, teacher = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    assert soft_target_loss(student, teacher, temperature=4.0).item() == pytest.approx(
        16 * float((p * (p / q).log()).sum()) / 6
    )


def test_gradients_keep_their_size_at_high_temperature():
    """Hinton et al., eq. 4: for large T the gradient tends to (student - teacher) / classes for centred logits."""
    student = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, -1.0]], dtype=torch.float64)
    soft_target_loss(student, teacher, temperature=1e4).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 3, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_mix_of_soft_and_hard(weight):
    student, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    loss = distillation_loss(student, teacher, labels, weight=weight, temperature=2.0, label_smoothing=0.1)
    soft = soft_target_loss(student, teacher, temperature=2.0)
    hard = F.cross_entropy(student, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, weight * soft + (1 - weight) * hard)


def test_segmentation_averages_over_pixels():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    flat = soft_target_loss(
        student.permute(0, 2, 3, 1).reshape(-1, 3), teacher.permute(0, 2, 3, 1).reshape(-1, 3), temperature=2.0
    )
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature=2.0), flat)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(4, 3, requires_grad=True)
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    student = torch.randn(4, 3, requires_grad=True)
    total = soft_target_loss(student, teacher, temperature=2.0)
    total = total + attention_transfer(torch.randn(2, 5, 4, 4, requires_grad=True), features)
    total.backward()
    assert teacher.grad is None
    assert features.grad is None
    assert student.grad is not None


def by_positions(*squares: float, channels: int) -> Tensor:
    """(1, channels, 1, positions) features whose mean squares over the channels are those."""
    return torch.tensor(squares).sqrt().reshape(1, 1, 1, -1).expand(1, channels, 1, -1)


def test_attention_by_hand_with_different_widths():
    # Mean squares (3, 4) and (4, 3) have norm 5: maps (.6, .8) and (.8, .6); mean of (.2^2, .2^2) = 0.04.
    student, teacher = by_positions(3, 4, channels=1), by_positions(4, 3, channels=7)
    torch.testing.assert_close(attention_map(student), torch.tensor([[0.6, 0.8]]))
    assert attention_transfer(student, teacher).item() == pytest.approx(0.04)


def test_attention_knows_where_not_how_much():
    features = torch.randn(3, 8, 5, 5)
    assert attention_transfer(features * 7.0, features).item() == pytest.approx(0.0, abs=1e-12)
    assert attention_transfer(features[:, torch.randperm(8)], features).item() == pytest.approx(0.0, abs=1e-12)


def test_the_larger_map_is_pooled_to_the_smaller():
    large = torch.randn(2, 4, 8, 8)
    small = F.avg_pool2d(large, 2)
    assert attention_transfer(small, large).item() == pytest.approx(0.0, abs=1e-12)
    assert attention_transfer(large, small).item() == pytest.approx(0.0, abs=1e-12)


def test_tokens_have_their_channels_last():
    tokens = torch.randn(2, 9, 5)
    as_image = tokens.transpose(1, 2).reshape(2, 5, 3, 3)
    torch.testing.assert_close(attention_map(tokens), attention_map(as_image))


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        ((2, 4), (2, 4), "no positions"),
        ((2, 4, 3, 3), (2, 9, 4), "same kind"),
        ((2, 4, 6), (2, 5, 6), "4 \\(student\\) and 5 \\(teacher\\)"),
    ],
)
def test_features_that_cannot_be_compared(student, teacher, says):
    with pytest.raises(ShapeError, match=says):
        attention_transfer(torch.randn(student), torch.randn(teacher))


def test_logits_of_other_classes_are_refused():
    with pytest.raises(ShapeError, match="same classes"):
        soft_target_loss(torch.randn(2, 10), torch.randn(2, 100), temperature=1.0)
