"""Criteria that give every single weight a score: tensors of one shape in, scores of that shape out.

`prunus.sparsify` averages them over the units of a pattern; in `prunus.score` a unit's score is their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError


def magnitude(weight: Tensor) -> Tensor:
    """|w|.

    Args:
        weight: any shape.

    Returns:
        Scores of that shape, >= 0.

    Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015,
    arXiv:1506.02626.

    >>> magnitude(torch.tensor([[0.1, -0.5]]))
    tensor([[0.1000, 0.5000]])
    """
    return weight.abs()


def random_weight(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform scores in [0, 1) for each weight: the baseline that every criterion has to beat.

    Args:
        weight: any shape; only that is read.
        generator: a CPU generator.

    Returns:
        Scores of that shape.
    """
    return torch.rand(weight.shape, generator=generator).to(weight)


def snip(weight: Tensor, weight_gradient: Tensor) -> Tensor:
    """|w g|: how much the loss changes, to first order, when the weight goes.

    Args:
        weight: any shape.
        weight_gradient: the same shape, gradient of the mean loss over all examples (the absolute value is taken after
            the mean).

    Returns:
        Scores of that shape, >= 0, comparable across layers. The paper divides by their sum: the same order.

    Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019,
    arXiv:1810.02340.

    >>> snip(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]))
    tensor([3., 6.])
    """
    return (weight * weight_gradient).abs()


def grasp(weight: Tensor, gradient_flow: Tensor) -> Tensor:
    """w (H g): how much the squared norm of the gradient falls, to first order, when the weight goes.

    Args:
        weight: any shape.
        gradient_flow: the same shape, Hessian times gradient (`prunus.statistics.gradient_flow`).

    Returns:
        Scores of that shape, of either sign: minus the paper's, which removes the highest. Comparable across layers.

    Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020,
    arXiv:2002.07376.

    >>> grasp(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0]))
    tensor([4., 1.])
    """
    return weight * gradient_flow


def synflow(weight: Tensor, synaptic_gradient: Tensor) -> Tensor:
    """|w| dR/d|w|: the flow of ones through the weight, in a network of absolute weights.

    Args:
        weight: any shape.
        synaptic_gradient: the same shape (`prunus.statistics.synaptic_gradient`).

    Returns:
        Scores of that shape in the gradient's type, >= 0. In networks without biases they add up to the same number in
        every layer.

    Source: Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020, arXiv:2006.05467. One round of it; the iterated method is
    `prunus.methods.run("synflow", ...)`.
    """
    return weight.abs() * synaptic_gradient


def taylor_element(weight: Tensor, weight_gradient_square: Tensor) -> Tensor:
    """(w g)^2, with the square taken per mini-batch and averaged over them.

    Args:
        weight: any shape.
        weight_gradient_square: the same shape, mean over mini-batches of g^2.

    Returns:
        Scores of that shape, >= 0, comparable across layers.

    Source: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
    arXiv:1906.10771, eq. 8, for single weights.
    """
    return weight.square() * weight_gradient_square


def obd(weight: Tensor, hessian_diagonal: Tensor) -> Tensor:
    """h w^2 / 2: how much a quadratic loss grows when the weight goes and the others stay.

    Args:
        weight: any shape, near a minimum of the loss.
        hessian_diagonal: the same shape, second derivatives of the mean loss. May be negative, as the scores then are.

    Returns:
        Scores of that shape, comparable across layers.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.

    >>> obd(torch.tensor([1.0, 1.5]), torch.tensor([4.0, 1.0]))
    tensor([2.0000, 1.1250])
    """
    return 0.5 * hessian_diagonal * weight.square()


def obd_fisher(weight: Tensor, weight_gradient_square: Tensor) -> Tensor:
    """`obd` with the mean squared gradient in the place of the second derivative (empirical Fisher information).

    Args:
        weight: any shape.
        weight_gradient_square: the same shape, mean over mini-batches of g^2; the Fisher information of one example
            needs mini-batches of one.

    Returns:
        Scores of that shape, >= 0, comparable across layers.

    Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989; the Fisher form is that of Theis et al., 2018,
    arXiv:1801.05787.
    """
    return obd(weight, weight_gradient_square)


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Weight magnitude times the norm of the input that it multiplies.

    Args:
        weight: (out, in, *kernel).
        input_norm: (in,) L2 norm of each input feature over the calibration data, in activation units.

    Returns:
        Scores of the weight's shape, >= 0; comparable within one output only.

    Raises:
        ShapeError: `input_norm` is not (in,).

    Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
    arXiv:2306.11695, eq. 1.

    >>> wanda(torch.tensor([[3.0, -1.0]]), torch.tensor([1.0, 4.0]))
    tensor([[3., 4.]])
    """
    if input_norm.shape != weight.shape[1:2]:
        raise ShapeError(
            f"wanda: input_norm has shape {tuple(input_norm.shape)}, but weight {tuple(weight.shape)} "
            f"needs ({weight.shape[1]},): one norm per input feature"
        )
    return weight.abs() * input_norm.reshape(1, -1, *[1] * (weight.dim() - 2))
