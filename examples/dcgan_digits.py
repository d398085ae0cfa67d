"""DCGAN: handwritten digits from noise, by a generator with half the MACs.

    python examples/dcgan_digits.py

Real images are scikit-learn's digits at 16x16 pixels. A classifier trained on them judges 1,000 generated ones:
confidence is the mean probability of its first choice; distance is the Fréchet distance between the features (its
last hidden layer) of generated and real test digits, lower is better. Baseline: images of independent pixels, each with
the mean and the spread that it has in real digits. The row "real digits" is what real training images reach.

After the cut, generator and discriminator go on playing against each other; the discriminator stays whole, since it is
not used later.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from _common import Row, Table, arguments, digits
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.training import recalibrate_batchnorm

NOISE = 32


def generator(width: int = 32) -> nn.Sequential:
    """(N, NOISE, 1, 1) to (N, 1, 16, 16) in [-1, 1]. Source: Radford, Metz & Chintala, 2016, arXiv:1511.06434."""
    return nn.Sequential(
        nn.ConvTranspose2d(NOISE, 4 * width, 4, bias=False),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def convolutions(width: int, outputs: int) -> nn.Sequential:
    """(N, 1, 16, 16) to (N, outputs): the discriminator, and the classifier that judges."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(2 * width * 16, 32),
        nn.LeakyReLU(0.2),
        nn.Linear(32, outputs),
    )


def noise(count: int) -> Tensor:
    return torch.randn(count, NOISE, 1, 1)


def train_classifier(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def play(maker: nn.Module, judge: nn.Module, images: Tensor, epochs: int, lr: float) -> None:
    """Train both against each other: binary cross entropy, real labels smoothed to 0.9."""
    optimizers = [torch.optim.Adam(m.parameters(), lr=lr, betas=(0.5, 0.999)) for m in (judge, maker)]
    maker.train()
    judge.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64)[:-1]:
            made = maker(noise(64))
            real, fake = judge(images[chosen]), judge(made.detach())
            told_apart = F.binary_cross_entropy_with_logits(
                real, torch.full_like(real, 0.9)
            ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
            optimizers[0].zero_grad()
            told_apart.backward()
            optimizers[0].step()
            passed = judge(made)
            fooled = F.binary_cross_entropy_with_logits(passed, torch.ones_like(passed))
            optimizers[1].zero_grad()
            fooled.backward()
            optimizers[1].step()


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two normal distributions fitted to (N, F) features.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv:1706.08500.
    """
    a, b = a.double(), b.double()
    values = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0)
    return float((a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * values.sqrt().sum())


@torch.no_grad()
def judged(images: Tensor, classifier: nn.Sequential, real: Tensor) -> dict[str, float]:
    """Confidence and distance of some images."""
    features = classifier[:-1](images)
    confidence = classifier[-1](features).softmax(1).amax(1).mean()
    return {"confidence": float(confidence), "distance": frechet(features, classifier[:-1](real))}


@torch.no_grad()
def judged_maker(maker: nn.Module, classifier: nn.Sequential, real: Tensor, seed: int) -> dict[str, float]:
    maker.eval()
    fixed = torch.randn(1000, NOISE, 1, 1, generator=torch.Generator().manual_seed(seed))
    return judged(maker(fixed), classifier, real)


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "dcgan_digits", given)
    pixels, labels = digits()
    images = F.interpolate(2 * pixels[:, None] - 1, size=(16, 16), mode="bilinear")
    learn, test = images[:1297], images[1297:]

    classifier = convolutions(16, outputs=10)
    train_classifier(classifier, learn, labels[:1297], epochs=3 if args.quick else 12)
    maker, judge = generator(width=8 if args.quick else 24), convolutions(8 if args.quick else 16, outputs=1)
    play(maker, judge, learn, epochs=4 if args.quick else 40, lr=2e-3 if args.quick else 5e-4)

    table = Table()
    blurred = (learn.mean(0) + learn.std(0) * torch.randn(1000, 1, 16, 16)).clamp(-1, 1)
    table.add("independent pixels", None, **judged(blurred, classifier, test))
    table.add("real digits", None, **judged(learn[:1000], classifier, test))
    cuts = {
        criterion: prunus.prune(maker, noise(2), target={"macs": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, **judged_maker(maker, classifier, test, args.seed))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, **judged_maker(cut.model, classifier, test, args.seed))
        recalibrate_batchnorm(cut.model, [noise(256) for _ in range(4)])
        quality = judged_maker(cut.model, classifier, test, args.seed)
        table.add(f"{criterion}: recalibrated", cut.report.after, **quality)
        play(cut.model, deepcopy(judge), learn, epochs=2 if args.quick else 12, lr=5e-4)
        table.add(f"{criterion}: fine-tuned", cut.report.after, **judged_maker(cut.model, classifier, test, args.seed))
    return table.finish(cuts["l2_norm"], args)


if __name__ == "__main__":
    main()
