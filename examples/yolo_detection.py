"""A detector in the style of YOLOv8 (backbone, neck, head): shapes in noisy images, with half the MACs.

    python examples/yolo_detection.py

Images of 64x64 pixels hold up to three circles, squares and triangles of 12 to 30 pixels. AP is the average precision
at an IoU of 0.5, averaged over the three classes; IoU is that of each true shape with the best detection of its class
above a score of 0.25 (0 without one), averaged over all shapes. Baseline: the true boxes, the class guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _common import Row, Table, arguments
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.training import recalibrate_batchnorm

SIDE, CLASSES, OBJECTS = 64, 3, 3
STRIDES = (8, 16)
LARGE = 20  # objects of more pixels belong to the coarse level

# --------------------------------------------------------------------------------------------------------- network


class Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class C2f(nn.Module):
    """Split in two; one half passes through residual blocks; every stage goes into the output."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = shortcut
        self.first = Conv(inputs, outputs, 1)
        self.blocks = nn.ModuleList(nn.Sequential(Conv(half, half), Conv(half, half)) for _ in range(blocks))
        self.last = Conv((2 + blocks) * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        stages = list(self.first(x).chunk(2, dim=1))
        for block in self.blocks:
            stages.append(stages[-1] + block(stages[-1]) if self.shortcut else block(stages[-1]))
        return self.last(torch.cat(stages, dim=1))


class SPPF(nn.Module):
    """Maxima over ever larger neighbourhoods, side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv(channels, channels // 2, 1)
        self.last = Conv(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.first(x)]
        for _ in range(3):
            stages.append(F.max_pool2d(stages[-1], 3, stride=1, padding=1))
        return self.last(torch.cat(stages, dim=1))


class Head(nn.Module):
    """Box distances and class logits of every cell: (N, C, H, W) to (N, H * W, 4 + CLASSES)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Conv(channels, width), nn.Conv2d(width, 4, 1))
        self.kind = nn.Sequential(Conv(channels, width), nn.Conv2d(width, CLASSES, 1))
        nn.init.constant_(self.get_parameter("kind.1.bias"), -4.0)  # most cells hold nothing

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), self.kind(x)], dim=1).flatten(2).transpose(1, 2)


class Detector(nn.Module):
    """(N, 3, 64, 64) images to (N, 80, 4 + CLASSES): 8x8 cells of stride 8, then 4x4 of stride 16."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        w, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width
        self.stem = nn.Sequential(Conv(3, w, stride=2), Conv(w, w2, stride=2), C2f(w2, w2))
        self.fine = nn.Sequential(Conv(w2, w4, stride=2), C2f(w4, w4))
        self.coarse = nn.Sequential(Conv(w4, w8, stride=2), C2f(w8, w8), SPPF(w8))
        self.up = C2f(w8 + w4, w4, shortcut=False)
        self.down = Conv(w4, w4, stride=2)
        self.join = C2f(w4 + w8, w8, shortcut=False)
        self.heads = nn.ModuleList([Head(w4, w4), Head(w8, w4)])

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(self.stem(images))
        coarse = self.coarse(fine)
        fine = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], dim=1))
        coarse = self.join(torch.cat([self.down(fine), coarse], dim=1))
        return torch.cat([head(level) for head, level in zip(self.heads, (fine, coarse))], dim=1)


def cells() -> tuple[Tensor, Tensor]:
    """(80, 2) centres (x, y) and (80, 1) strides of the cells, in pixels."""
    centres, strides = [], []
    for stride in STRIDES:
        middle = (torch.arange(SIDE // stride) + 0.5) * stride
        centres.append(torch.cartesian_prod(middle, middle).flip(1))
        strides.append(torch.full((len(centres[-1]), 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)


CENTRES, CELL_STRIDES = cells()


def boxes_of(output: Tensor) -> Tensor:
    """(..., 80, 4) corners x1, y1, x2, y2 in pixels."""
    near, far = (F.softplus(output[..., :4]) * CELL_STRIDES).split(2, dim=-1)
    return torch.cat([CENTRES - near, CENTRES + far], dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) and (..., 4), broadcast."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    return inner / (area_a + area_b - inner)


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Scenes:
    """`images` (N, 3, 64, 64); `kinds` (N, OBJECTS), -1 where there is no object; `boxes` (N, OBJECTS, 4)."""

    images: Tensor
    kinds: Tensor
    boxes: Tensor


def scenes(count: int, random: torch.Generator) -> Scenes:
    """Shapes that overlap little, on noise, each in a colour of its own."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    images = 0.2 * torch.randn(count, 3, SIDE, SIDE, generator=random)
    kinds = torch.randint(CLASSES, (count, OBJECTS), generator=random)
    boxes = torch.zeros(count, OBJECTS, 4)
    for n in range(count):
        for k in range(OBJECTS):
            side = float(torch.randint(12, 31, (), generator=random))
            left, top = (torch.rand(2, generator=random) * (SIDE - side)).tolist()
            box = torch.tensor([left, top, left + side, top + side])
            if k and bool((iou(box, boxes[n, :k]) > 0.05).any()):
                kinds[n, k] = -1
                continue
            boxes[n, k] = box
            u, v = (x - left) / side, (y - top) / side
            inside = (
                (u - 0.5).square() + (v - 0.5).square() < 0.25,
                (u > 0) & (u < 1) & (v > 0) & (v < 1),
                (v < 1) & (v > 2 * (u - 0.5).abs()),
            )[int(kinds[n, k])]
            colour = 0.4 + 0.6 * torch.rand(3, 1, generator=random)
            images[n][:, inside] += colour
    return Scenes(images, kinds, boxes)


def assigned(data: Scenes) -> tuple[Tensor, Tensor]:
    """For every cell the class (N, 80), -1 = nothing, and the box (N, 80, 4) that it is to find: those of the object of
    its level whose middle lies within one stride."""
    kinds = torch.full((len(data.images), len(CENTRES)), -1)
    boxes = torch.zeros(len(data.images), len(CENTRES), 4)
    for kind, box in zip(data.kinds.unbind(1), data.boxes.unbind(1)):
        middle, large = (box[:, None, :2] + box[:, None, 2:]) / 2, box[:, 2] - box[:, 0] > LARGE
        level = (CELL_STRIDES[:, 0] == STRIDES[1]) == large[:, None]
        mine = ((CENTRES - middle).abs() < CELL_STRIDES).all(-1) & level & (kind >= 0)[:, None]
        kinds = torch.where(mine, kind[:, None], kinds)
        boxes = torch.where(mine[..., None], box[:, None], boxes)
    return kinds, boxes


# -------------------------------------------------------------------------------------------- training and measuring


def loss_of(output: Tensor, kinds: Tensor, boxes: Tensor) -> Tensor:
    """Binary cross entropy of the classes plus 1 - IoU of the boxes, per cell that holds an object."""
    found = kinds >= 0
    wanted = F.one_hot(kinds.clamp(min=0), CLASSES) * found[..., None]
    classes = F.binary_cross_entropy_with_logits(output[..., 4:], wanted.float(), reduction="sum")
    overlap = iou(boxes_of(output), boxes)[found]
    return (classes + 2 * (1 - overlap).sum()) / found.sum()


def train(model: nn.Module, data: Scenes, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    batches = len(data.images) // 16
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches, pct_start=0.2)
    kinds, boxes = assigned(data)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.images))[: batches * 16].split(16):
            loss = loss_of(model(data.images[chosen]), kinds[chosen], boxes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@dataclass(frozen=True)
class Detection:
    image: int
    kind: int
    score: float
    box: Tensor


@torch.no_grad()
def detect(model: nn.Module, images: Tensor) -> list[Detection]:
    """What is found with a score above 0.05, best first; of boxes of one class that overlap by half, the best stays."""
    model.eval()
    found: list[Detection] = []
    for n, output in enumerate(torch.cat([model(batch) for batch in images.split(50)])):
        scores, boxes = output[:, 4:].sigmoid(), boxes_of(output)
        for kind in range(CLASSES):
            kept: list[Detection] = []
            for cell in scores[:, kind].argsort(descending=True).tolist():
                score = float(scores[cell, kind])
                if score < 0.05:
                    break
                if all(float(iou(other.box, boxes[cell])) < 0.5 for other in kept):
                    kept.append(Detection(n, kind, score, boxes[cell]))
            found += kept
    return sorted(found, key=lambda detection: -detection.score)


def quality(found: list[Detection], data: Scenes) -> dict[str, float]:
    """AP at an IoU of 0.5, averaged over classes, and mean IoU over all objects."""
    precisions, overlaps = [], []
    for kind in range(CLASSES):
        mine = [detection for detection in found if detection.kind == kind]
        right, taken = [], set()
        for detection in mine:
            overlap = iou(detection.box, data.boxes[detection.image]) * (data.kinds[detection.image] == kind)
            best = (detection.image, int(overlap.argmax()))
            right.append(float(overlap.max()) >= 0.5 and best not in taken)
            taken |= {best} if right[-1] else set()
        hits = torch.tensor(right, dtype=torch.float).cumsum(0)
        precision = hits / torch.arange(1, len(hits) + 1)
        best_later = precision.flip(0).cummax(0).values.flip(0)  # precision at this recall or a higher one
        objects = (data.kinds == kind).nonzero()
        precisions.append(float(best_later[torch.tensor(right, dtype=torch.bool)].sum()) / len(objects))
        for n, k in objects.tolist():
            near = [iou(d.box, data.boxes[n, k]) for d in mine if d.image == n and d.score > 0.25]
            overlaps.append(float(max(near, default=torch.tensor(0.0))))
    return {"AP": sum(precisions) / CLASSES, "IoU": sum(overlaps) / len(overlaps)}


def guessed(data: Scenes, random: torch.Generator) -> list[Detection]:
    """All true boxes, with a class by chance."""
    return [
        Detection(n, int(torch.randint(CLASSES, (), generator=random)), 0.5, data.boxes[n, k])
        for n, k in (data.kinds >= 0).nonzero().tolist()
    ]


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "yolo_detection", given)
    random = torch.Generator().manual_seed(args.seed)
    learn, test = scenes(64 if args.quick else 800, random), scenes(20 if args.quick else 200, random)

    model = Detector(width=4 if args.quick else 12)
    train(model, learn, epochs=2 if args.quick else 16, lr=5e-3)

    table = Table()
    table.add("true boxes, class guessed", None, **quality(guessed(test, random), test))
    cuts = {
        criterion: prunus.prune(model, test.images[:2], target={"macs": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, **quality(detect(model, test.images), test))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, **quality(detect(cut.model, test.images), test))
        recalibrate_batchnorm(cut.model, learn.images.split(50))
        table.add(f"{criterion}: recalibrated", cut.report.after, **quality(detect(cut.model, test.images), test))
        train(cut.model, learn, epochs=1 if args.quick else 6, lr=2e-3)
        table.add(f"{criterion}: fine-tuned", cut.report.after, **quality(detect(cut.model, test.images), test))
    return table.finish(cuts["l2_norm"], args)


if __name__ == "__main__":
    main()
