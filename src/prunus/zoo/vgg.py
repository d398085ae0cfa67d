"""VGG with batch norm for 32x32 images: the convolutions of VGG, then one linear layer.

Source: Simonyan & Zisserman, 2014, arXiv:1409.1556; this form for CIFAR: Liu & Deng, ACPR 2015, with the 512-10
classifier that Li et al. 2016 (arXiv:1608.08710) and later pruning papers use.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import UnknownNameError

STAGES: Mapping[int, tuple[int, int, int, int, int]] = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each stage; a stage ends with a 2x2 max pool."""


class VGG(nn.Module):
    """VGG for 32x32 images.

    Args:
        depth: 11, 16 or 19.
        widths: Channels of each stage.
        in_channels: Channels of the images.
        classes: Number of outputs.

    Raises:
        UnknownNameError: No such depth.
    """

    def __init__(
        self,
        depth: int = 16,
        widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512),
        in_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if depth not in STAGES:
            raise UnknownNameError.of("VGG depth", depth, map(str, STAGES))
        layers: list[nn.Module] = []
        before = in_channels
        for convolutions, width in zip(STAGES[depth], widths):
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) images to (N, classes) logits."""
        return self.classifier(self.features(x).flatten(1))
