"""Criteria that ask how well the next layer's output can be kept without a unit."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


def thinet(contribution_moment: Tensor, keep: bool = False) -> Tensor:
    """When a unit is removed (or kept last) by the greedy choice that changes the next layer's output least.

    Args:
        contribution_moment: (units, units) mean products of the units' contributions to outputs of the next layer.
        keep: False: remove one after the other the unit that makes the smallest sum of squares of what was removed;
            True: keep one after the other the unit with which a least-squares fit of the whole output is best.

    Returns:
        (units,) scores: 0 for the first that goes, units - 1 for the last.

    Source: Luo, Wu, Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017,
    arXiv:1707.06342 (removal); the TPAMI 2019 version keeps. Moments over all outputs and sampled positions stand for
    the paper's samples.

    >>> x = torch.tensor([[1.0, 0, 2, -2], [0, 1, 1, -1], [3, 0, -1, 1]])
    >>> thinet(x.T @ x).tolist()  # costs 10, 1, 6, 6: unit 1 goes first, then 3
    [3.0, 0.0, 2.0, 1.0]
    """
    moment = contribution_moment.double()
    order = _kept_last(moment) if keep else _removed_first(moment)
    scores = torch.empty(len(moment), dtype=torch.float64)
    scores[torch.tensor(order)] = torch.arange(len(order), dtype=torch.float64)
    return scores.to(contribution_moment)


def _removed_first(moment: Tensor) -> list[int]:
    """Units in the order of removal; what is removed costs the sum of the moment over all pairs of it."""
    left = torch.ones(len(moment), dtype=torch.bool)
    across = torch.zeros(len(moment), dtype=moment.dtype)  # of each unit with all removed ones
    order = []
    for _ in range(len(moment)):
        cost = moment.diagonal() + 2 * across
        chosen = int(torch.where(left, cost, torch.full_like(cost, float("inf"))).argmin())
        order.append(chosen)
        left[chosen] = False
        across = across + moment[chosen]
    return order


def _kept_last(moment: Tensor) -> list[int]:
    """Units in reverse order of a greedy least-squares choice (orthogonal: each step takes what explains most)."""
    whole = moment.sum(1)
    residual, target = moment.clone(), whole.clone()
    left = torch.ones(len(moment), dtype=torch.bool)
    kept = []
    scale = float(moment.diagonal().max().clamp_min(1e-300))
    for _ in range(len(moment)):
        power = residual.diagonal()
        gain = torch.where(power > 1e-12 * scale, target.square() / power.clamp_min(1e-300), torch.zeros_like(power))
        chosen = int(torch.where(left, gain, torch.full_like(gain, -1.0)).argmax())
        kept.append(chosen)
        left[chosen] = False
        if power[chosen] > 1e-12 * scale:
            column = residual[:, chosen].clone()
            target = target - column * (target[chosen] / power[chosen])
            residual = residual - torch.outer(column, column) / power[chosen].clone()
    return kept[::-1]


def lasso_channel(contribution_moment: Tensor) -> Tensor:
    """The strength of an L1 penalty at which a unit enters the regression of the next layer's output on all units.

    Args:
        contribution_moment: (units, units) mean products of the units' contributions to outputs of the next layer.

    Returns:
        (units,) scores, >= 0: the largest penalty with a coefficient that is not zero; 0 for units that never enter.

    Source: Y. He, X. Zhang, J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    arXiv:1707.06168 (its selection; the least-squares repair is `prunus.methods.run("lasso_channel", ...)`). The whole
    path is followed at once, where the authors search for one penalty.
    """
    from sklearn.linear_model import lars_path_gram

    moment = contribution_moment.double().cpu().numpy()
    scale = float(np.abs(moment).max())
    if scale == 0:
        return torch.zeros_like(contribution_moment[:, 0])
    moment = moment / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # collinear units are dropped, which is what is wanted
        alphas, _, path = lars_path_gram(moment.sum(1), moment, n_samples=1, method="lasso")
    nonzero = np.abs(path) > 1e-12
    first = np.where(nonzero.any(1), nonzero.argmax(1), len(alphas) - 1)
    entered = np.where(nonzero.any(1), alphas[np.maximum(first - 1, 0)], 0.0)
    return torch.from_numpy(entered * scale).to(contribution_moment)


def least_squares_scale(contribution_moment: Tensor, kept: Tensor, ridge: float = 1e-8) -> Tensor:
    """Factors for the kept units with which their contributions fit the whole output best.

    Args:
        contribution_moment: (units, units). kept: bool (units,).
        ridge: share of the mean power that is added to the diagonal.

    Returns:
        (kept units,) factors; 1 if all are kept.

    Raises:
        InputError: no unit is kept.

    >>> least_squares_scale(torch.eye(3), torch.tensor([True, True, True])).round(decimals=4)
    tensor([1., 1., 1.])
    """
    if not kept.any():
        raise InputError("least_squares_scale: no unit is kept")
    moment = contribution_moment.double()
    inner = moment[kept][:, kept]
    wanted = moment[kept].sum(1)
    damping = ridge * inner.diagonal().mean().clamp_min(1e-300) * torch.eye(len(inner), dtype=inner.dtype)
    # Damped towards 1, so that units without power keep their factor.
    ones = torch.ones(len(inner), dtype=inner.dtype)
    return torch.linalg.solve(inner + damping, wanted + damping @ ones).to(contribution_moment)


def inbound_variance(inbound_variance: Tensor) -> Tensor:
    """Largest variance over examples of the norm of a unit's contribution to one map of the next layer.

    Args:
        inbound_variance: (units,) as collected.

    Source: Polyak, Wolf, "Channel-level acceleration of deep face representations", IEEE Access 3, 2015. The paper
    prunes single connections between maps; taking a unit's largest is our choice.
    """
    return inbound_variance
