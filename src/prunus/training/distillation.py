"""Losses that pull a student towards its teacher: soft targets and attention maps. Pure functions of tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over samples (and positions).

    The factor T^2 keeps its gradients as large as those of the labels' loss when T changes.

    Args:
        student: (N, classes, ...) logits.
        teacher: logits of the same shape; no gradient flows into them.
        temperature: T > 0.

    Returns:
        A scalar >= 0; 0 only where both distributions agree.

    Raises:
        ShapeError: the logits differ in shape.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"distillation: the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "both must have the same classes"
        )
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    guess = F.log_softmax(student / temperature, dim=1)
    divergence = F.kl_div(guess, target, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """weight * soft targets + (1 - weight) * cross entropy with the labels.

    Args:
        student: (N, classes, ...) logits.
        teacher: logits of the same shape.
        labels: (N, ...) class indices.
        weight: alpha in [0, 1].
        temperature: T > 0.
        label_smoothing: of the labels' part only.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
    """
    soft = soft_target_loss(student, teacher, temperature=temperature)
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    return weight * soft + (1 - weight) * hard


def attention_map(features: Tensor) -> Tensor:
    """Where a layer's activations are large: mean of squares over the channels, scaled to unit L2 norm per sample.

    Args:
        features: (N, C, H, W) or (N, C, D, H, W); or (N, tokens, width), whose last dimension is the channels.

    Returns:
        (N, positions) map of unit norm; it no longer knows how many channels there were.

    Raises:
        ShapeError: there are no positions, only channels.

    Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, F_sum^2.
    """
    if features.dim() < 3:
        raise ShapeError(
            f"attention_map: features of shape {tuple(features.shape)} have no positions; "
            "choose a module whose output is (N, C, H, W) or (N, tokens, width)"
        )
    channels = 2 if features.dim() == 3 else 1
    return F.normalize(features.float().pow(2).mean(channels).flatten(1), dim=1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two attention maps; the numbers of channels may differ.

    Args:
        student: (N, C1, H, W) features (or as in `attention_map`).
        teacher: (N, C2, H2, W2) features; where the spatial sizes differ, the larger is average-pooled to the smaller.

    Returns:
        A scalar >= 0. No gradient flows into the teacher.

    Raises:
        ShapeError: the maps cannot be compared.

    Source: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, eq. 2 with p = 2;
    the mean of squares over positions, instead of the norm, is what the authors' code computes.
    """
    teacher = teacher.detach()
    if student.dim() != teacher.dim() or student.shape[0] != teacher.shape[0]:
        raise ShapeError(
            f"attention_transfer: the student's features are {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}; pair modules with outputs of the same kind"
        )
    if student.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
        size = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:]))
        student, teacher = (F.adaptive_avg_pool2d(t.float(), size) for t in (student, teacher))  # type: ignore[arg-type]
    mine, other = attention_map(student), attention_map(teacher)
    if mine.shape != other.shape:
        raise ShapeError(
            f"attention_transfer: the maps have {mine.shape[1]} (student) and {other.shape[1]} (teacher) positions; "
            "pair modules at the same resolution"
        )
    return (mine - other).pow(2).mean()
