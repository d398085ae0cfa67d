"""LeNet-300-100 and LeNet-5, the two networks of the early pruning papers.

Source: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998; LeNet-5 in the
form of Caffe's example, which Han et al. 2015 (arXiv:1506.02626) and later papers prune.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units on 28x28 grey pixels.

    Args:
        inputs: Number of pixels times channels.
        hidden: Widths of the hidden layers.
        classes: Number of outputs.
    """

    def __init__(self, inputs: int = 784, hidden: tuple[int, int] = (300, 100), classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images or (N, F) features to (N, classes) logits."""
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """Caffe's LeNet-5 on 28x28 pixels: 5x5 convolutions of 20 and 50 channels, each max-pooled by 2, and 500 hidden
    units.

    As in Caffe, the only ReLU is the one after the hidden layer.

    Args:
        channels: Widths of the convolutions.
        hidden: Width of the hidden layer.
        in_channels: Channels of the images.
        classes: Number of outputs.
        size: Side of the images, 28 in Caffe, at least 16; convolutions and pooling leave (size - 12) // 4 of it.

    Raises:
        InputError: `size` leaves nothing after the second pooling.
    """

    def __init__(
        self,
        channels: tuple[int, int] = (20, 50),
        hidden: int = 500,
        in_channels: int = 1,
        classes: int = 10,
        size: int = 28,
    ) -> None:
        super().__init__()
        if size < 16:
            raise InputError(f"LeNet5: size={size} must be 16 or more: two 5x5 convolutions, each pooled by 2")
        side = (size - 12) // 4
        self.conv1 = nn.Conv2d(in_channels, channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.fc1 = nn.Linear(channels[1] * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) images to (N, classes) logits."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
