"""Convolutions that compute only what a mask left, equal to the dense ones with zeros.

Both read the input at the positions that a kernel offset (i, j) sees: for the output at (u, v) that is the padded input
at (u stride + i dilation, v stride + j dilation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over an image: (height, width) each; `padding` is (left, right, top, bottom)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    mode: str = "zeros"

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Geometry:
        """Of a dense convolution."""
        (kh, kw), (sh, sw), (dh, dw) = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
        # _reversed_padding_repeated_twice spells "same", which may be one wider on the right, out for both dimensions.
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        return cls((kh, kw), (sh, sw), (dh, dw), (left, right, top, bottom), layer.padding_mode)

    def padded(self, x: Tensor) -> Tensor:
        """The input with its padding."""
        if not any(self.padding):
            return x
        return F.pad(x, self.padding, mode="constant" if self.mode == "zeros" else self.mode)

    def output_size(self, padded: Tensor) -> tuple[int, int]:
        """(height, width) of the output for a padded input."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        height, width = padded.shape[-2:]
        return (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1

    def seen(self, padded: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
        """What the kernel offset (row-major number) reads of a padded input, a view of the output's size."""
        i, j = divmod(offset, self.kernel[1])
        (sh, sw), (dh, dw) = self.stride, self.dilation
        rows = slice(i * dh, i * dh + (size[0] - 1) * sh + 1, sh)
        columns = slice(j * dw, j * dw + (size[1] - 1) * sw + 1, sw)
        return padded[..., rows, columns]


class StripeConv2d(nn.Module):
    """A convolution whose weight has whole stripes W[o, :, i, j] of zeros: 1x1 convolutions of the stripes left.

    With stride 1 one 1x1 convolution computes all stripes on the padded input, and each kernel offset's share of its
    output is shifted and added to the channels that it belongs to, as in the paper. With a larger stride each offset
    has a convolution of its own on what it sees of the input, which saves the work that the stride would throw away.
    Either way (stripes left) Cin multiply-accumulates per position.

    Source: Meng et al., "Pruning Filter in Filter", NeurIPS 2020, arXiv:2009.14410.

    Args:
        weight: (out, in, kh, kw); stripes that are wholly zero are left out.
        bias: (out,) or None.
        geometry: of the dense layer.
    """

    outputs: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
        super().__init__()
        self.out_channels, self.in_channels = weight.shape[:2]
        self.geometry = geometry
        alive = (weight != 0).any(1).flatten(1)  # (out, offsets)
        offsets, outputs = alive.T.nonzero(as_tuple=True)
        self.counts = tuple(int(count) for count in alive.sum(0))
        self.stripes = nn.Parameter(weight.detach().flatten(2)[outputs, :, offsets].clone())
        self.register_buffer("outputs", outputs.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def share(self) -> float:
        """Multiply-accumulates beside those of the dense convolution."""
        return len(self.stripes) / (self.out_channels * len(self.counts))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        padded = self.geometry.padded(x)
        size = self.geometry.output_size(padded)
        out = x.new_zeros(len(x), self.out_channels, *size)
        for outputs, part in zip(self.outputs.split(self.counts), self._parts(padded, size)):
            if len(outputs):
                out = out.to(part.dtype)  # autocast may have lowered it
                out.index_add_(1, outputs, part)
        return out if self.bias is None else out + self.bias.to(out.dtype).reshape(-1, 1, 1)

    def _parts(self, padded: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """What each kernel offset adds to its outputs."""
        kernels = self.stripes[:, :, None, None]
        if self.geometry.stride == (1, 1) and len(kernels):
            for offset, part in enumerate(F.conv2d(padded, kernels).split(self.counts, 1)):
                yield self.geometry.seen(part, offset, size)
        else:
            for offset, weight in enumerate(kernels.split(self.counts)):
                seen = self.geometry.seen(padded, offset, size)
                yield F.conv2d(seen, weight) if len(weight) else seen[:, :0]

    def dense_weight(self) -> Tensor:
        """(out, in, kh, kw) with the zeros."""
        kh, kw = self.geometry.kernel
        weight = self.stripes.new_zeros(kh * kw, self.out_channels, self.in_channels)
        for offset, (part, outputs) in enumerate(zip(self.stripes.split(self.counts), self.outputs.split(self.counts))):
            weight[offset, outputs] = part
        return weight.permute(1, 2, 0).reshape(self.out_channels, self.in_channels, kh, kw)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return (
            f"{self.in_channels}, {self.out_channels}, {len(self.stripes)} stripes, {self.share:.0%} of the dense MACs"
        )


class FilterShapeConv2d(nn.Module):
    """A convolution in which all filters miss the same entries W[:, c, i, j]: one product over the entries left.

    The input rows of those entries are gathered (an im2col of that size) and multiplied by (out, entries left):
    (entries left) Cout Hout Wout multiply-accumulates.

    Source: Lebedev & Lempitsky, "Fast ConvNets Using Group-Wise Brain Damage", CVPR 2016, arXiv:1506.02515.

    Args:
        weight: (out, in, kh, kw); entries that are zero in every filter are left out.
        bias: (out,) or None.
        geometry: of the dense layer.
    """

    channels: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
        super().__init__()
        self.out_channels, self.in_channels = weight.shape[:2]
        self.geometry = geometry
        alive = (weight != 0).any(0).flatten(1)  # (in, offsets)
        offsets, channels = alive.T.nonzero(as_tuple=True)
        self.counts = tuple(int(count) for count in alive.sum(0))
        self.columns = nn.Parameter(weight.detach().flatten(2)[:, channels, offsets].clone())
        self.register_buffer("channels", channels.clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def share(self) -> float:
        """Multiply-accumulates beside those of the dense convolution."""
        return self.columns.shape[1] / (self.in_channels * len(self.counts))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        padded = self.geometry.padded(x)
        size = self.geometry.output_size(padded)
        rows = list(self._rows(padded, size))
        if rows:
            out = F.conv2d(torch.cat(rows, 1), self.columns[:, :, None, None])
        else:
            out = x.new_zeros(len(x), self.out_channels, *size)
        return out if self.bias is None else out + self.bias.to(out.dtype).reshape(-1, 1, 1)

    def _rows(self, padded: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        for offset, channels in enumerate(self.channels.split(self.counts)):
            if len(channels):  # whole channels are chosen first: contiguous copies are quick, and the shift is a view
                chosen = padded if len(channels) == self.in_channels else padded.index_select(1, channels)
                yield self.geometry.seen(chosen, offset, size)

    def dense_weight(self) -> Tensor:
        """(out, in, kh, kw) with the zeros."""
        kh, kw = self.geometry.kernel
        weight = self.columns.new_zeros(kh * kw, self.in_channels, self.out_channels)
        for offset, (part, channels) in enumerate(
            zip(self.columns.T.split(self.counts), self.channels.split(self.counts))
        ):
            weight[offset, channels] = part
        return weight.permute(2, 1, 0).reshape(self.out_channels, self.in_channels, kh, kw)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        left = self.columns.shape[1]
        return f"{self.in_channels}, {self.out_channels}, {left} entries per filter, {self.share:.0%} of the dense MACs"


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    height, width = value
    return height, width
