"""A criterion that keeps a diverse set of units: what resembles a unit that is already kept comes later."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-300


def kernel_divergence(kernels: Tensor) -> Tensor:
    """(n, n) Jensen-Shannon divergences in bits between units, seen as distributions over their input channels.

    Args:
        kernels: (units, channels, positions). P_o(c) is the share of channel c in the L1 norm of unit o; a zero unit is
            the uniform distribution.

    Returns:
        In float64, in [0, 1], 0 on the diagonal; 1 for units that read no common channel.

    >>> kernel_divergence(torch.tensor([[[1.0], [0.0]], [[3.0], [0.0]], [[0.0], [2.0]]]))
    tensor([[0., 0., 1.],
            [0., 0., 1.],
            [1., 1., 0.]], dtype=torch.float64)
    """
    shares = kernels.double().abs().sum(2)
    total = shares.sum(1, keepdim=True)
    shares = torch.where(total > 0, shares / total.clamp_min(_TINY), torch.full_like(shares, 1 / shares.shape[1]))
    own = _entropy(shares)
    rows = [_entropy((row + shares) / 2) - (mine + own) / 2 for row, mine in zip(shares, own)]
    found = torch.stack(rows).clamp(0, 1)
    return found.fill_diagonal_(0)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(1) / torch.log(torch.tensor(2.0, dtype=shares.dtype))


def spectral_embedding(divergence: Tensor, dimensions: int) -> Tensor:
    """(n, dimensions) coordinates from the lowest eigenvectors of the normalised Laplacian of exp(-J^2 / median^2).

    Units with the same divergences to all others get the same coordinates while there are fewer dimensions than
    distinct units.
    """
    count = len(divergence)
    apart = divergence[~torch.eye(count, dtype=torch.bool, device=divergence.device)]
    width = apart.median() if len(apart) else divergence.new_zeros(())
    scale = width if width > 0 else divergence.new_ones(())
    affinity = torch.exp(-(divergence / scale).square())
    root = affinity.sum(1).rsqrt()
    laplacian = torch.eye(count).to(affinity) - root[:, None] * affinity * root
    return torch.linalg.eigh(laplacian).eigenvectors[:, : min(dimensions, count)]


def curating(kernels: Tensor, loss_change: Tensor, mu: float = 1.0, nu: float = 1.0, dimensions: int = 8) -> Tensor:
    """Rank in which units are taken into a set that is salient, strong and diverse, the first one highest.

    The set starts with the largest u_o = z(loss change) + mu z(L1 norm), z the standard score within the layer, and
    grows by the unit with the largest u_o + nu min_{j kept} ||E_o - E_j||, E a spectral embedding of the divergences
    between units. Since it grows unit by unit, one call serves every ratio.

    Args:
        kernels: (units, channels, positions). With one to three channels the divergences say little.
        loss_change: (units,) loss with the unit set to zero, minus loss.
        mu: weight of the norm. nu: weight of the diversity.
        dimensions: of the embedding.

    Returns:
        (units,) scores 1 to n: n for the first one taken.

    Source: Pattanayak, Nag, Mittal, "CURATING: A multi-objective based pruning technique for CNNs", Journal of Systems
    Architecture 116:102031, 2021. The parts are in the abstract; how they are put together is our reconstruction.
    """
    count = len(kernels)
    worth = _standard(loss_change.to(kernels.device).double()) + mu * _standard(
        kernels.double().abs().flatten(1).sum(1)
    )
    points = spectral_embedding(kernel_divergence(kernels), dimensions)
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    scores = torch.zeros(count, dtype=torch.float64, device=kernels.device)
    nearest = torch.zeros_like(worth)
    left = torch.ones(count, dtype=torch.bool, device=kernels.device)
    for rank in range(count, 0, -1):
        gain = torch.where(left, worth + nu * nearest, -torch.inf)
        taken = int(gain.argmax())
        scores[taken] = rank
        left[taken] = False
        nearest = apart[taken] if rank == count else torch.minimum(nearest, apart[taken])
    return scores.to(kernels)


def _standard(values: Tensor) -> Tensor:
    """Standard scores; 0 where all values are the same."""
    centred = values - values.mean()
    spread = centred.square().mean().sqrt()
    return centred / spread if spread > 1e-12 * values.abs().amax() else torch.zeros_like(values)
