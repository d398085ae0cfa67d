"""torchvision: classification, segmentation, detection and video networks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from case import Built, Case
from torch import Tensor, nn

CLASSIFICATION: dict[str, int] = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_b1": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet34": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_s": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "vit_b_16": 64,
    "vit_b_32": 64,
    "wide_resnet50_2": 64,
}
"""Classifier -> input size."""

SEGMENTATION = (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)

DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)

VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")

CLASSES = 10


def cases() -> list[Case]:
    """All cases; raises ImportError where torchvision is absent."""
    provide_operators()
    import torchvision  # pyright: ignore[reportMissingImports]  # noqa: F401

    kinds = (
        *((name, functools.partial(_classifier, name, size)) for name, size in CLASSIFICATION.items()),
        *((name, functools.partial(_segmenter, name)) for name in SEGMENTATION),
        *((name, functools.partial(_detector, name)) for name in DETECTION),
        *((name, functools.partial(_video, name)) for name in VIDEO),
    )
    return [Case("torchvision", name, build) for name, build in kinds]


def provide_operators() -> None:
    """Define non-maximum suppression in plain torch where torchvision's compiled operators do not load.

    A wheel that was built for another torch lacks them, and then does not even import. Suppression works on boxes that
    the network has put out, so which implementation runs changes nothing about what can be pruned; RoI align falls
    back on torchvision's own one in Python.
    """
    library = torch.library
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("torchvision::nms", "CPU", _non_maximum_suppression)
        _forget_half_imported("torchvision")
        import torchvision.ops.boxes  # pyright: ignore[reportMissingImports]

        torchvision.ops.boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]


def _forget_half_imported(package: str) -> None:
    import sys

    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        del sys.modules[name]


def _non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that overlap no better-scored kept box by more than `threshold`, best first."""
    left: Tensor = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared / (areas[best] + areas[left] - shared) <= threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long)


def _classifier(name: str, size: int) -> Built:
    import torchvision  # pyright: ignore[reportMissingImports]

    extra: dict[str, Any] = {}
    if name.startswith("vit"):
        extra["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = False
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **extra)
    return model.eval(), torch.randn(2, 3, size, size)


def _segmenter(name: str) -> Built:
    import torchvision  # pyright: ignore[reportMissingImports]

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES)
    return model.eval(), torch.randn(2, 3, 64, 64)


def _detector(name: str) -> Built:
    import torchvision  # pyright: ignore[reportMissingImports]

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, **_small(name))
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 96)]
    if name.startswith("ssdlite"):
        _settle(model.eval(), images)
    return model.eval(), (images,)


def _settle(model: nn.Module, images: list[Tensor]) -> None:
    """Give the batch norms the statistics of images: with none the signal dies, and boxes of equal scores are ranked by
    rounding."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum


def _small(name: str) -> dict[str, Any]:
    """Keep images small and the number of proposals low; the SSDs resize to a size of their own."""
    if name.startswith("ssd"):
        return {}
    extra: dict[str, Any] = {"min_size": 96, "max_size": 128}
    if "rcnn" in name:
        extra |= {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 8}
    return extra


def _video(name: str) -> Built:
    import torchvision  # pyright: ignore[reportMissingImports]

    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    frames, size = {"mvit_v2_s": (16, 224), "s3d": (16, 224)}.get(name, (4, 64))
    return model.eval(), torch.randn(2, 3, frames, size, size)
