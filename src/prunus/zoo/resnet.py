"""Residual networks for small images: three stages of basic blocks, depth 6n + 2.

Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError

Shortcut = Literal["A", "B"]
"""Where the shape changes: A takes every second pixel and pads zero channels, B is a 1x1 convolution with batch
norm."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and the input added to what they give.

    `pad_before` and `pad_after` are the zero channels that a shortcut of kind A puts around its input's channels.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        changes = stride != 1 or in_channels != channels
        self.pads = changes and shortcut == "A"
        self.pad_before = (channels - in_channels) // 2 if self.pads else 0
        self.pad_after = channels - in_channels - self.pad_before if self.pads else 0
        self.downsample = None
        if changes and shortcut == "B":
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.pads:
            strided = x[:, :, :: self.stride, :: self.stride]
            return F.pad(strided, (0, 0, 0, 0, self.pad_before, self.pad_after))
        return x


class ResNet(nn.Module):
    """A residual network for small images.

    Args:
        blocks: Blocks in each stage; the depth is two layers a block, and the stem and the classifier.
        widths: Channels of each stage; every stage but the first starts with stride 2.
        shortcut: Kind of the shortcuts that change shape.
        in_channels: Channels of the images.
        classes: Number of outputs.

    Raises:
        InputError: The widths fall from one stage to the next with shortcuts of kind A, which can only pad.
    """

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        shortcut: Shortcut = "A",
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if shortcut == "A" and list(widths) != sorted(widths):
            raise InputError(f"widths={widths} must not fall with shortcut='A', which pads channels; take shortcut='B'")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, 1, shortcut)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, shortcut)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, shortcut)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, classes) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))
