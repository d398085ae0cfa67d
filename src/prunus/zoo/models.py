"""The table of networks, and `build`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..errors import InputError, UnknownNameError
from .densenet import DenseNet
from .lenet import LeNet5, LeNet300100
from .mobilenet import MobileNetV1, MobileNetV2
from .resnet import ResNet
from .unet import UNet
from .vgg import VGG


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A network of the zoo.

    Attributes:
        factory: Makes it, untrained; takes keywords such as `classes`.
        input_shape: (C, H, W) that it is made for.
        classes: Outputs of the default form (channels of the mask for U-Net).
        paper: Authors, year, arXiv number.
        parameters: Number of trainable parameters of the default form.
        macs: Multiply-accumulates of one sample of `input_shape` in convolutions and linear layers, biases not counted.
    """

    factory: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    paper: str
    parameters: int
    macs: int


_LENET = "LeCun et al. 1998"
_RESNET = "He et al. 2015, arXiv:1512.03385"
_VGG = "Simonyan & Zisserman 2014, arXiv:1409.1556"
_CIFAR = (3, 32, 32)

MODELS: Mapping[str, ZooEntry] = {
    "lenet300": ZooEntry(LeNet300100, (1, 28, 28), 10, _LENET, 266_610, 266_200),
    "lenet5": ZooEntry(LeNet5, (1, 28, 28), 10, _LENET, 431_080, 2_293_000),
    "resnet_digits": ZooEntry(
        partial(ResNet, 1, widths=(32, 64, 128), in_channels=1), (1, 8, 8), 10, _RESNET, 297_450, 2_968_832
    ),
    "resnet8": ZooEntry(partial(ResNet, 1), _CIFAR, 10, _RESNET, 75_290, 12_239_488),
    "resnet20": ZooEntry(partial(ResNet, 3), _CIFAR, 10, _RESNET, 269_722, 40_551_040),
    "resnet32": ZooEntry(partial(ResNet, 5), _CIFAR, 10, _RESNET, 464_154, 68_862_592),
    "resnet44": ZooEntry(partial(ResNet, 7), _CIFAR, 10, _RESNET, 658_586, 97_174_144),
    "resnet56": ZooEntry(partial(ResNet, 9), _CIFAR, 10, _RESNET, 853_018, 125_485_696),
    "resnet110": ZooEntry(partial(ResNet, 18), _CIFAR, 10, _RESNET, 1_727_962, 252_887_680),
    "resnet20_b": ZooEntry(partial(ResNet, 3, shortcut="B"), _CIFAR, 10, _RESNET, 272_474, 40_813_184),
    "resnet56_b": ZooEntry(partial(ResNet, 9, shortcut="B"), _CIFAR, 10, _RESNET, 855_770, 125_747_840),
    "resnet110_b": ZooEntry(partial(ResNet, 18, shortcut="B"), _CIFAR, 10, _RESNET, 1_730_714, 253_149_824),
    "vgg11": ZooEntry(partial(VGG, 11), _CIFAR, 10, _VGG, 9_231_114, 152_769_536),
    "vgg16": ZooEntry(partial(VGG, 16), _CIFAR, 10, _VGG, 14_728_266, 313_201_664),
    "vgg19": ZooEntry(partial(VGG, 19), _CIFAR, 10, _VGG, 20_040_522, 398_136_320),
    "densenet40": ZooEntry(DenseNet, _CIFAR, 10, "Huang et al. 2017, arXiv:1608.06993", 1_019_722, 264_812_928),
    "mobilenet_v1": ZooEntry(MobileNetV1, _CIFAR, 10, "Howard et al. 2017, arXiv:1704.04861", 3_217_226, 46_354_432),
    "mobilenet_v2": ZooEntry(MobileNetV2, _CIFAR, 10, "Sandler et al. 2018, arXiv:1801.04381", 2_236_682, 87_976_448),
    "unet": ZooEntry(UNet, (3, 256, 256), 1, "Ronneberger et al. 2015, arXiv:1505.04597", 31_037_633, 48_167_387_136),
}


def build(name: str, **arguments: Any) -> nn.Module:
    """Make a network of the zoo, untrained, with weights drawn from torch's global generator.

    Args:
        name: Key of MODELS.
        arguments: Of its factory, such as `classes=100` or `in_channels=1`.

    Raises:
        UnknownNameError: No network has that name.
        InputError: The factory has no such argument.

    >>> build("lenet5").fc2
    Linear(in_features=500, out_features=10, bias=True)
    """
    if name not in MODELS:
        raise UnknownNameError.of("network", name, MODELS)
    factory = MODELS[name].factory
    takes = inspect.signature(factory).parameters
    for argument in arguments:
        if argument not in takes:
            raise InputError(f"build({name!r}): no argument {argument!r}; it takes {', '.join(takes)}")
    return factory(**arguments)
