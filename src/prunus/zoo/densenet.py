"""DenseNet without bottlenecks and compression: every layer reads the outputs of all layers before it in its block.

Source: Huang, Liu, van der Maaten & Weinberger, "Densely Connected Convolutional Networks", 2017, arXiv:1608.06993.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution; the result is put behind the input's channels."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    """Batch norm, ReLU, 1x1 convolution, 2x2 average pool."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks with two transitions between them.

    Args:
        depth: 3n + 4 layers: n in each block, stem, two transitions, classifier.
        growth: Channels that each layer adds (k).
        stem: Channels of the first convolution; 16 in the paper, 24 in the form whose 282.9 M MACs pruning papers
            quote.
        in_channels: Channels of the images.
        classes: Number of outputs.

    Raises:
        InputError: `depth` is not 3n + 4.
    """

    def __init__(
        self, depth: int = 40, growth: int = 12, stem: int = 16, in_channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        layers, rest = divmod(depth - 4, 3)
        if rest or layers < 1:
            raise InputError(f"depth={depth} must be 3n + 4 with n of 1 or more: 7, 10, ..., 40, ...")
        self.conv = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.block1 = _block(stem, growth, layers)
        self.transition1 = Transition(stem + layers * growth)
        self.block2 = _block(stem + layers * growth, growth, layers)
        self.transition2 = Transition(stem + 2 * layers * growth)
        self.block3 = _block(stem + 2 * layers * growth, growth, layers)
        self.bn = nn.BatchNorm2d(stem + 3 * layers * growth)
        self.linear = nn.Linear(stem + 3 * layers * growth, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, classes) logits."""
        x = self.transition1(self.block1(self.conv(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.linear(torch.mean(F.relu(self.bn(x)), dim=(2, 3)))


def _block(in_channels: int, growth: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + i * growth, growth) for i in range(layers)))
