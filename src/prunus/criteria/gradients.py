"""Criteria that read gradients of the loss: first-order estimates of how the loss changes when a unit goes."""

from __future__ import annotations

import torch
from torch import Tensor


def taylor_weight(weight: Tensor, weight_gradient_square: Tensor) -> Tensor:
    """Sum over a unit's weights of (g w)^2, with the square taken per mini-batch and averaged over them.

    Args:
        weight: (units, elements).
        weight_gradient_square: (units, elements), mean over mini-batches of g^2. As w stands still meanwhile,
            mean (g w)^2 = w^2 mean g^2.

    Returns:
        (units,) scores, >= 0. Comparable across layers (no layer normalisation in the paper). They depend on the size
        of the mini-batches.

    Source: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
    arXiv:1906.10771 (method 0 of the authors' code).

    >>> w, g = torch.tensor([[1.0, 2.0, 3.0, -1.0]]), torch.tensor([[0.5, -0.25, 0.1, 0.4]])
    >>> taylor_weight(w, g.square())
    tensor([0.7500])
    """
    return (weight.square() * weight_gradient_square).sum(1)


def taylor_joint(unit_taylor: Tensor) -> Tensor:
    """(sum over a unit's weights of g w)^2, with the square taken per mini-batch and averaged over them.

    For a loss that is linear in the weights this is the squared change of the loss when the unit is removed.

    Args:
        unit_taylor: (units,) that mean, as collected.

    Returns:
        (units,) scores, >= 0.

    Source: Molchanov et al., CVPR 2019, arXiv:1906.10771 (importance of a set of weights, eq. 5 to 8).
    """
    return unit_taylor


def taylor_gate(gate_taylor: Tensor) -> Tensor:
    """(gamma dL/dgamma + beta dL/dbeta)^2 of the normalisation after each unit, averaged over mini-batches.

    It equals (z dL/dz)^2 for a gate z = 1 that multiplies the norm's output ("Taylor-FO-BN", the paper's best).

    Args:
        gate_taylor: (units,) that mean, as collected.

    Returns:
        (units,) scores, >= 0, comparable across layers.

    Source: Molchanov et al., CVPR 2019, arXiv:1906.10771 (method 22 of the authors' code).
    """
    return gate_taylor


def taylor_activation(activation_taylor: Tensor) -> Tensor:
    """Mean over examples of |mean over positions of dL/dA * A|, divided by its L2 norm over the layer.

    Args:
        activation_taylor: (units,) that mean, before the division, as collected.

    Returns:
        (units,) scores, >= 0, made comparable across layers by the division. All 0 if no gradient came through.

    Source: Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", ICLR 2017, arXiv:1611.06440, eq. 8 and section 2.2. The absolute value stands outside the mean over
    positions as in the paper; `taylor_activation_abs` has it inside, as the authors' later code does.

    >>> taylor_activation(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return _layer_normalised(activation_taylor)


def taylor_activation_abs(activation_taylor_abs: Tensor) -> Tensor:
    """As `taylor_activation`, with the absolute value inside the mean over positions: mean of |dL/dA * A|.

    Source: as `taylor_activation`; this variant is the authors' 2019 code. It ranks differently.
    """
    return _layer_normalised(activation_taylor_abs)


def mean_gradient(activation_gradient: Tensor) -> Tensor:
    """Mean over examples of |mean over positions of dL/dA|, the gradient of an example's own loss.

    Args:
        activation_gradient: (units,) that mean, as collected.

    Returns:
        (units,) scores, >= 0; 0 for a unit that nothing reads.

    Source: reconstructed from the abstract of C. Liu, H. Wu, "Channel pruning based on mean gradient for accelerating
    convolutional neural networks", Signal Processing 156, 2019, 84-91. The absolute value stands outside the mean over
    positions, which is our choice; the paper's ranking within stages is `scope="global", normalise="l2"`.
    """
    return activation_gradient


def sensitivity_hessian(weight: Tensor, weight_gradient_square: Tensor) -> Tensor:
    """Sum over a unit's weights of h w^2 / 2, h the diagonal of the Hessian, approximated by the mean squared gradient.

    Args:
        weight: (units, elements).
        weight_gradient_square: (units, elements), mean over mini-batches of g^2 (the empirical Fisher diagonal, times
            the batch size for independent examples).

    Returns:
        (units,) scores, >= 0: the increase of a quadratic loss with that diagonal when the unit is set to zero.

    Source: C. Yang, H. Liu, "Channel pruning based on convolutional neural network sensitivity", Neurocomputing 507,
    2022, 97-106 (sum over the filter as in the abstract). Ranks as `taylor_weight`, which has no factor 1/2.
    """
    return taylor_weight(weight, weight_gradient_square) / 2


def _layer_normalised(score: Tensor) -> Tensor:
    largest = score.abs().amax()
    if largest == 0:
        return torch.zeros_like(score)
    scaled = score / largest  # first, so that the squares of tiny scores do not vanish
    return scaled / torch.linalg.vector_norm(scaled)
