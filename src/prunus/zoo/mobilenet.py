"""MobileNets: depthwise convolutions, in version 2 inside inverted residual blocks. Strides are those for 32x32 images.

Sources: Howard et al., "MobileNets", 2017, arXiv:1704.04861; Sandler et al., "MobileNetV2", 2018, arXiv:1801.04381.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""(channels, stride) of each depthwise-separable block."""

V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first) of each stage; table 2 of the paper."""


def _conv_bn(in_channels: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class MobileNetV1(nn.Module):
    """MobileNet: a 3x3 convolution, then blocks of a depthwise 3x3 and a 1x1 convolution.

    Args:
        width: Multiplier of all channels.
        stem_stride: Stride of the first convolution: 1 for 32x32 images, 2 (the paper's) for 224x224.
        in_channels: Channels of the images.
        classes: Number of outputs.
    """

    def __init__(self, width: float = 1.0, stem_stride: int = 1, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        channels = [round(32 * width), *(round(c * width) for c, _ in V1_BLOCKS)]
        self.stem = nn.Sequential(*_conv_bn(in_channels, channels[0], stride=stem_stride), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    *_conv_bn(before, before, stride=stride, groups=before),
                    nn.ReLU(inplace=True),
                    *_conv_bn(before, after, kernel=1),
                    nn.ReLU(inplace=True),
                )
                for (before, after), (_, stride) in zip(pairwise(channels), V1_BLOCKS)
            )
        )
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, classes) logits."""
        x = self.blocks(self.stem(x))
        return self.classifier(torch.mean(x, dim=(2, 3)))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, depthwise 3x3, project by a 1x1 convolution without activation; add the input if the
    shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [*_conv_bn(in_channels, hidden, kernel=1), nn.ReLU6(inplace=True)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            *_conv_bn(hidden, hidden, stride=stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *_conv_bn(hidden, channels, kernel=1),
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        strides: Strides of the stem and of the second stage: (1, 1) for 32x32 images, (2, 2) (the paper's) for 224x224.
        dropout: Probability before the classifier.
        in_channels: Channels of the images.
        classes: Number of outputs.
    """

    def __init__(
        self, strides: tuple[int, int] = (1, 1), dropout: float = 0.0, in_channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(in_channels, 32, stride=strides[0]), nn.ReLU6(inplace=True))
        blocks: list[nn.Module] = []
        before = 32
        for stage, (expansion, channels, count, stride) in enumerate(V2_BLOCKS):
            first = strides[1] if stage == 1 else stride
            for block in range(count):
                blocks.append(InvertedResidual(before, channels, 1 if block else first, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn(before, 1280, kernel=1), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, classes) logits."""
        x = torch.mean(self.head(self.blocks(self.stem(x))), dim=(2, 3))
        return self.classifier(self.dropout(x))
