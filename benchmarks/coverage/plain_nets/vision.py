"""Convolutional networks with joins, transposed convolutions, detection mazes, shuffles and permutations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class UNet(nn.Module):
    """Down by pooling, up by transposed convolution, odd sizes padded to fit."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(self.pair(i, o) for i, o in zip((3, *widths), widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(self.pair(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def pair(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1]):
            x = up(x)
            dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            x = merge(torch.cat([skip, F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))], 1))
        return self.head(x)


class Generator(nn.Module):
    """DCGAN's generator: noise (n, z, 1, 1) to images."""

    def __init__(self, z: int = 16, width: int = 8) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.ConvTranspose2d(z, width * 4, 4, 1, 0, bias=False), nn.BatchNorm2d(width * 4), nn.ReLU(True)),
            *(nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 2), nn.ReLU(True)),
            *(nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
            *(nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class Discriminator(nn.Module):
    """DCGAN's discriminator; its last convolution covers the whole map."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(width, width * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 2), nn.LeakyReLU(0.2, True)),
            *(nn.Conv2d(width * 2, width * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 4), nn.LeakyReLU(0.2, True)),
            *(nn.Conv2d(width * 4, 1, 4, 1, 0, bias=False), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1)


class DenseGenerator(nn.Module):
    """A generator that starts from a linear layer reshaped to a map."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.start = nn.Linear(16, width * 16)
        self.middle, self.end = nn.Conv2d(width, width // 2, 3, padding=1), nn.Conv2d(width // 2, 12, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.start(z)).view(-1, self.width, 4, 4)
        x = F.relu(self.middle(F.interpolate(x, scale_factor=2.0)))
        return torch.tanh(F.pixel_shuffle(self.end(x), 2))


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Splits, runs bottlenecks one after the other, concatenates everything."""

    def __init__(self, inputs: int, outputs: int, n: int = 2) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = conv(inputs, 2 * self.c, 1), conv((2 + n) * self.c, outputs, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Sppf(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(inputs, inputs // 2, 1), conv(inputs * 2, outputs, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.pool(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """Backbone, top-down and bottom-up neck, and a decoupled head with distribution-focal boxes at three scales."""

    bins = 4

    def __init__(self, classes: int = 5, w: int = 8) -> None:
        super().__init__()
        self.outputs_per_cell = classes + 4 * self.bins
        self.stem = nn.Sequential(conv(3, w, 3, 2), conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))
        self.p3 = nn.Sequential(conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w))
        self.p4 = nn.Sequential(conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w))
        self.p5 = nn.Sequential(conv(8 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w), Sppf(8 * w, 8 * w))
        self.up4, self.up3 = C2f(16 * w, 8 * w, 1), C2f(12 * w, 4 * w, 1)
        self.down4, self.down5 = conv(4 * w, 4 * w, 3, 2), conv(8 * w, 8 * w, 3, 2)
        self.out4, self.out5 = C2f(12 * w, 8 * w, 1), C2f(16 * w, 8 * w, 1)
        widths = (4 * w, 8 * w, 8 * w)
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 16), nn.Conv2d(16, 4 * self.bins, 1)) for c in widths)
        self.classes = nn.ModuleList(nn.Sequential(conv(c, 16), nn.Conv2d(16, classes, 1)) for c in widths)

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.p3(self.stem(x))
        c4 = self.p4(c3)
        c5 = self.p5(c4)
        n4 = self.up4(torch.cat([F.interpolate(c5, scale_factor=2.0), c4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2.0), c3], 1))
        n4 = self.out4(torch.cat([self.down4(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down5(n4), c5], 1))
        maps = [torch.cat([b(n), c(n)], 1) for b, c, n in zip(self.boxes, self.classes, (n3, n4, n5))]
        flat = torch.cat([m.view(x.shape[0], self.outputs_per_cell, -1) for m in maps], 2)
        boxes, classes = flat.split((4 * self.bins, self.outputs_per_cell - 4 * self.bins), 1)
        b, _, cells = boxes.shape
        weights = boxes.view(b, 4, self.bins, cells).softmax(2)
        distances = (weights * torch.arange(self.bins, dtype=x.dtype)[:, None]).sum(2)
        return torch.cat([distances, classes.sigmoid()], 1)


class OddShuffle(nn.Module):
    """ShuffleNet units whose halves are odd: 58 -> 29 channels, again and again."""

    def __init__(self, width: int = 58, units: int = 3) -> None:
        super().__init__()
        half = width // 2
        self.stem = conv(3, width)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half), conv(half, half, 1))
            for _ in range(units)
        )
        self.last, self.head = conv(width, 64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, branch(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))


class PermutedChannels(nn.Module):
    """A learned-once permutation of channels, kept in a buffer, as CondenseNet has it."""

    order: Tensor

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.grouped = conv(3, width), conv(width, width, 3, groups=4)
        self.register_buffer("order", torch.randperm(width, generator=torch.Generator().manual_seed(0)))
        self.last, self.head = conv(width, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))[:, self.order]
        return self.head(self.last(self.grouped(x)).mean((2, 3)))


class SelectedChannels(nn.Module):
    """index_select by a constant list, some channels twice, and a flip."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.index = torch.tensor([0, 3, 3, 5, 9, 2, 14, 11, 15, 1])
        self.middle, self.last = conv(10, 24), conv(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x).index_select(1, self.index))
        x = x + self.last(x).flip(1)
        return self.head(x.mean((2, 3)))


class Capsules(nn.Module):
    """Primary capsules by reshape, routed by agreement to class capsules."""

    def __init__(self, classes: int = 4, primary: int = 8, width: int = 6) -> None:
        super().__init__()
        self.primary, self.width, self.classes = primary, width, classes
        self.conv = nn.Conv2d(1, 32, 5)
        self.capsules = nn.Conv2d(32, primary * width, 5, 2)
        self.votes = nn.Parameter(torch.randn(classes, primary, width, 8) * 0.3)
        self.read = nn.Sequential(nn.Linear(8 * classes, 32), nn.ReLU(), nn.Linear(32, 10))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        norm = (x * x).sum(-1, keepdim=True)
        return norm / (1 + norm) * x / (norm + 1e-6).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        x = self.capsules(F.relu(self.conv(x)))
        u = self.squash(x.view(x.shape[0], self.primary, self.width, -1).permute(0, 3, 1, 2))
        votes = torch.einsum("bnpw,cpwd->bcnpd", u, self.votes)
        logits = torch.zeros(votes.shape[:-1])
        for _ in range(2):
            v = self.squash((logits.softmax(1).unsqueeze(-1) * votes).sum((2, 3)))
            logits = logits + torch.einsum("bcnpd,bcd->bcnp", votes, v)
        return self.read(v.flatten(1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.b1, self.b3 = conv(16, 8, 1), nn.Sequential(conv(16, 12, 1), conv(12, 16))
        self.b5, self.pool = nn.Sequential(conv(16, 4, 1), conv(4, 8, 5)), conv(16, 8, 1)
        self.last, self.head = conv(40, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.b1(x), self.b3(x), self.b5(x), self.pool(F.avg_pool2d(x, 3, 1, 1))]
        return self.head(self.last(torch.cat(branches, 1)).mean((2, 3)))


class PointNet(nn.Module):
    """Shared 1-D convolutions over points, max pooling, and a transform that the network predicts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ReLU(), nn.Conv1d(16, 32, 1), nn.ReLU())
        self.matrix = nn.Linear(32, 9)
        self.features = nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 48, 1))
        self.head = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        t = self.matrix(self.transform(x).amax(-1)).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.features(t @ x).max(-1).values)


class VideoNet(nn.Module):
    """3-D convolutions with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 32, 3, padding=1, stride=2)
        self.na, self.nb = nn.GroupNorm(4, 16), nn.InstanceNorm3d(32, affine=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.nb(self.b(F.relu(self.na(self.a(x)))))).mean((2, 3, 4)))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skip connections."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.filters, self.gates = (
            nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3)) for _ in range(2)
        )
        self.skips, self.residuals = (
            nn.ModuleList(nn.Conv1d(width, o, 1) for _ in range(3)) for o in (2 * width, width)
        )
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(2 * width, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for i, (f, g, s, r) in enumerate(zip(self.filters, self.gates, self.skips, self.residuals)):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            total, x = total + s(y), x + r(y)
        return self.end(total)


class Autoencoder(nn.Module):
    """A variational autoencoder; in eval mode it decodes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32 * 16, 12), nn.Linear(32 * 16, 12)
        self.expand = nn.Linear(12, 32 * 16)
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid())
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x).flatten(1)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decoder(self.expand(z).unflatten(1, (-1, 4, 4))), (1 + log_variance - mean**2).sum(1)
