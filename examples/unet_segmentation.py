"""U-Net: find the ink of handwritten digits among strokes of the same brightness, with half the MACs.

    python examples/unet_segmentation.py

The images are made from scikit-learn's digits: three on noise, with straight strokes as distractors. Dice is
2·|found ∩ true| / (|found| + |true|) over all pixels of the test images. Baseline: every bright pixel is a digit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from _common import Row, Samples, Table, arguments, digits
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.training import TrainingConfig, fit, recalibrate_batchnorm
from prunus.zoo import build

SIDE, DIGIT = 32, 12
ARCHITECTURE = {"widths": (12, 24, 48), "in_channels": 1, "classes": 2}


def scenes(count: int, pixels: Tensor, seed: int) -> Samples:
    """(N, 1, 32, 32) images and (N, 32, 32) masks, 1 where there is a digit's ink and 0 elsewhere."""
    random = torch.Generator().manual_seed(seed)
    large = F.interpolate(pixels[:, None], size=(DIGIT, DIGIT), mode="bilinear")[:, 0]
    images, masks = torch.zeros(count, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for image, mask in zip(images, masks):
        for which in torch.randint(len(pixels), (3,), generator=random):
            y, x = torch.randint(SIDE - DIGIT, (2,), generator=random).tolist()
            window = (slice(y, y + DIGIT), slice(x, x + DIGIT))
            image[window] = torch.maximum(image[window], large[which])
            mask[window] |= (large[which] > 0.5).long()
        for _ in range(4):
            start, direction = torch.rand(2, generator=random) * SIDE, torch.randn(2, generator=random)
            line = (start + torch.arange(0, 10, 0.25)[:, None] * F.normalize(direction, dim=0)).long()
            rows, columns = line[((line >= 0) & (line < SIDE)).all(1)].T
            image[rows, columns] = 0.9
            mask[rows, columns] = 0
    images += 0.15 * torch.randn(images.shape, generator=random)
    return Samples(images[:, None], masks)


def dice(found: Tensor, true: Tensor) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


@torch.no_grad()
def dice_of(model: nn.Module, data: Samples) -> float:
    model.eval()
    found = torch.cat([model(images).argmax(1) for images, _ in data.batches(64)])
    return dice(found == 1, data.targets == 1)


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "unet_segmentation", given)
    pixels, _ = digits()
    train = scenes(160 if args.quick else 800, pixels[:1400], 2 * args.seed)
    test = scenes(40 if args.quick else 200, pixels[1400:], 2 * args.seed + 1)
    training = TrainingConfig(
        epochs=3 if args.quick else 8, batch_size=16, optimizer="adamw", lr=5e-3, precision="fp32", seed=args.seed
    )
    tuning = replace(training, epochs=1 if args.quick else 4, lr=2e-3)

    model = build("unet", **ARCHITECTURE)
    fit(model, train, training)

    table = Table()
    table.add("bright pixels", None, dice=dice(test.inputs[:, 0] > 0.5, test.targets == 1))
    cuts = {
        criterion: prunus.prune(model, train.inputs[:2], target={"macs": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, dice=dice_of(model, test))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, dice=dice_of(cut.model, test))
        recalibrate_batchnorm(cut.model, train.batches(64))
        table.add(f"{criterion}: recalibrated", cut.report.after, dice=dice_of(cut.model, test))
        fit(cut.model, train, tuning)
        table.add(f"{criterion}: fine-tuned", cut.report.after, dice=dice_of(cut.model, test))
    return table.finish(cuts["l2_norm"], args, factory="zoo:unet", arguments=ARCHITECTURE)


if __name__ == "__main__":
    main()
