"""Optimal brain surgery by an empirical Fisher matrix of diagonal blocks (oBERT): inverse, scores, updates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError, ShapeError


class BlockFisher:
    """Inverse of lambda I + (1/m) sum g g^T, cut into diagonal blocks, kept up to date gradient by gradient.

    Args:
        entries: of the flattened weight; the last block is filled up with entries without gradients.
        block: entries in each block (B).
        count: gradients that will be added (m).
        damping: lambda, > 0.

    Attributes:
        inverse: (blocks, B, B).

    Source: Kurtic, Campos, Nguyen, Frantar, Kurtz, Fineran, Goin, Alistarh, "The Optimal BERT Surgeon", EMNLP 2022,
    arXiv:2203.07259, section 3.
    """

    def __init__(
        self, entries: int, block: int, count: int, damping: float, *, device: torch.device | str = "cpu"
    ) -> None:
        if min(entries, block, count) < 1 or not damping > 0:
            raise InputError(
                f"BlockFisher: entries={entries}, block={block}, count={count} must be 1 or more, damping={damping} > 0"
            )
        self.entries, self.block, self.count = entries, block, count
        blocks = -(-entries // block)
        self.inverse = (torch.eye(block, device=device) / damping).repeat(blocks, 1, 1)

    def add(self, gradient: Tensor) -> None:
        """One more gradient (entries,): the inverse changes by a product of two vectors in each block (Woodbury)."""
        g = self._blocks(gradient)
        v = (self.inverse @ g.unsqueeze(2)).squeeze(2)
        self.inverse -= v.unsqueeze(2) * (v / (self.count + (g * v).sum(1, keepdim=True))).unsqueeze(1)

    def scores(self, weight: Tensor, group: int = 1) -> Tensor:
        """How much the loss grows if a weight, or a group of consecutive ones, goes and the block makes up for it.

        Args:
            weight: (entries,) flattened.
            group: 1: w_i^2 / (2 [F^-1]_ii); else 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q of each group.

        Returns:
            (entries,) or (groups,), >= 0.

        Raises:
            ShapeError: the block or the weight is not made of whole groups.
        """
        w = self._blocks(weight)
        if group == 1:
            return (w.square() / (2 * self.inverse.diagonal(dim1=1, dim2=2))).flatten()[: self.entries]
        parts, inverse = self._groups(w, group)
        solved = torch.linalg.solve(inverse, parts.unsqueeze(3)).squeeze(3)
        return ((parts * solved).sum(2) / 2).flatten()[: self.entries // group]

    def update(self, weight: Tensor, gone: Tensor, group: int = 1, *, joint: bool = False) -> Tensor:
        """The change of the weight when some of its entries go.

        Args:
            weight: (entries,).
            gone: (entries,) bool, whole groups.
            group: as in `scores`.
            joint: solve for all that go in a block at once, which is exact; False adds the updates of single weights or
                groups, as published, exact only where one goes in a block.

        Returns:
            (entries,) change; weight + change is 0 where `gone`.
        """
        w, out = self._blocks(weight), self._blocks(gone.to(weight.dtype))
        if joint:
            chosen = out.unsqueeze(2) * out.unsqueeze(1)  # rows and columns that go; the identity elsewhere
            system = self.inverse * chosen + torch.diag_embed(1 - out)
            factors = torch.linalg.solve(system, (w * out).unsqueeze(2)).squeeze(2)
        elif group == 1:
            factors = w * out / self.inverse.diagonal(dim1=1, dim2=2)
        else:
            parts, inverse = self._groups(w, group)
            solved = torch.linalg.solve(inverse, parts.unsqueeze(3)).squeeze(3)
            factors = solved.reshape(w.shape) * out
        change = -(self.inverse @ factors.unsqueeze(2)).squeeze(2)
        change = torch.where(out > 0, -w, change)
        return change.flatten()[: self.entries].to(weight.dtype)

    def _blocks(self, values: Tensor) -> Tensor:
        if values.shape != (self.entries,):
            raise ShapeError(f"BlockFisher: got {tuple(values.shape)}, need ({self.entries},): flatten the weight")
        spare = -self.entries % self.block
        return torch.nn.functional.pad(values.to(self.inverse), (0, spare)).view(-1, self.block)

    def _groups(self, w: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """(blocks, groups, group) weights and (blocks, groups, group, group) parts of the inverse."""
        if self.block % group or self.entries % group:
            raise ShapeError(f"groups of {group} do not divide block={self.block} and {self.entries} entries")
        count = self.block // group
        split = self.inverse.view(len(w), count, group, count, group)
        index = torch.arange(count, device=w.device)
        return w.view(len(w), count, group), split[:, index, :, index].transpose(0, 1)
