"""U-Net with batch norm and same padding, so that the mask has the size of the image.

Source: Ronneberger, Fischer & Brox, "U-Net", 2015, arXiv:1505.04597; batch norm and padding as is usual since.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ShapeError


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Double the size and halve the channels, put the encoder's output before the result, convolve twice."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.conv = DoubleConv(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class UNet(nn.Module):
    """An encoder that halves the size at each step and a decoder that doubles it, with the encoder's outputs carried
    over.

    Args:
        widths: Channels at each size, from the full one down.
        in_channels: Channels of the images.
        classes: Channels of the mask's logits; 1 tells foreground from background.
    """

    def __init__(
        self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024), in_channels: int = 3, classes: int = 1
    ) -> None:
        super().__init__()
        self.inc = DoubleConv(in_channels, widths[0])
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(Up(b, a) for a, b in reversed(list(zip(widths, widths[1:]))))
        self.outc = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, classes, H, W) logits.

        Raises:
            ShapeError: H or W cannot be halved at every step.
        """
        step = 2 ** len(self.down)
        if x.shape[2] % step or x.shape[3] % step:
            raise ShapeError(f"UNet: images are {tuple(x.shape[2:])} pixels; both sides must be multiples of {step}")
        skips = [self.inc(x)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.outc(x)
