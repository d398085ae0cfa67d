"""The zoo against the published sizes, counted by a counter that shares no code with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.zoo import MODELS, build
from prunus.zoo.resnet import BasicBlock
from prunus.zoo.vgg import VGG

# (name, arguments, side of the image, parameters, MACs): from the papers and their usual implementations.
PUBLISHED = [
    ("lenet300", {}, 28, 266_610, 266_200),
    ("lenet5", {}, 28, 431_080, 2_293_000),
    ("resnet20", {}, 32, 269_722, 40_551_040),
    ("resnet20_b", {}, 32, 272_474, 40_813_184),
    ("resnet32", {}, 32, 464_154, 68_862_592),
    ("resnet44", {}, 32, 658_586, 97_174_144),
    ("resnet56", {}, 32, 853_018, 125_485_696),
    ("resnet56_b", {}, 32, 855_770, 125_747_840),
    ("resnet110", {}, 32, 1_727_962, 252_887_680),
    ("resnet110_b", {}, 32, 1_730_714, 253_149_824),
    ("vgg11", {}, 32, 9_231_114, 152_769_536),
    ("vgg16", {}, 32, 14_728_266, 313_201_664),
    ("vgg19", {}, 32, 20_040_522, 398_136_320),
    ("densenet40", {}, 32, 1_019_722, 264_812_928),
    ("densenet40", {"stem": 24}, 32, 1_059_298, 282_917_328),
    ("mobilenet_v1", {"stem_stride": 2, "classes": 1000}, 224, 4_231_976, 568_740_352),
    ("mobilenet_v2", {"strides": (2, 2), "classes": 1000}, 224, 3_504_872, 300_774_272),
    ("unet", {}, 256, 31_037_633, 48_167_387_136),
    ("unet", {"classes": 2}, 256, 31_037_698, 48_171_581_440),
]


def counted(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters, and MACs as they are written in a textbook's loops: on the meta device nothing is computed."""
    total = 0

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += layer.in_features * layer.out_features
        elif isinstance(
            layer, nn.ConvTranspose2d
        ):  # every input value is spread over a kernel for every output channel
            total += inputs[0].numel() * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, nn.Conv2d):
            _, _, height, width = output.shape
            taps = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            total += layer.out_channels * height * width * taps

    for module in model.modules():
        module.register_forward_hook(hook)
    model(torch.zeros(1, *shape, device="meta"))
    return sum(p.numel() for p in model.parameters()), total


@pytest.mark.parametrize(("name", "arguments", "side", "parameters", "macs"), PUBLISHED)
def test_sizes_are_the_published_ones(name, arguments, side, parameters, macs):
    with torch.device("meta"):
        model = build(name, **arguments)
    assert counted(model, (MODELS[name].input_shape[0], side, side)) == (parameters, macs)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_says_what_is_built(name):
    entry = MODELS[name]
    with torch.device("meta"):
        model = build(name)
    assert counted(model, entry.input_shape) == (entry.parameters, entry.macs)
    output = model(torch.zeros(2, *entry.input_shape, device="meta"))
    assert output.shape[:2] == (2, entry.classes)


def test_mobilenets_on_cifar_follow_the_closed_form():
    """Depthwise-separable block at side s: 9 c s² + c d s²; parameters 9 c + 2 c + c d + 2 d."""
    blocks = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
    side, macs, parameters = 32, 32 * 27 * 32**2, 32 * 27 + 2 * 32
    for c, d, stride in blocks:
        side //= stride
        macs += (9 * c + c * d) * side**2
        parameters += 9 * c + 2 * c + c * d + 2 * d
    entry = MODELS["mobilenet_v1"]
    assert (entry.parameters, entry.macs) == (parameters + 1024 * 10 + 10, macs + 1024 * 10)
    # Version 2 with 10 classes differs from the published 1000-class network in the classifier only.
    assert MODELS["mobilenet_v2"].parameters == 3_504_872 - 1281 * 990


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("unet", "resnet110", "resnet110_b", "vgg19")])
def test_a_batch_of_two_trains_every_parameter(name):
    entry = MODELS[name]
    model = build(name)
    F.cross_entropy(model(torch.randn(2, *entry.input_shape)), torch.tensor([0, 1])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_unet_gives_a_mask_of_the_image_and_trains_every_parameter():
    model = build("unet", widths=(4, 6, 8))
    output = model(torch.randn(2, 3, 16, 24))
    assert output.shape == (2, 1, 16, 24)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ShapeError, match="multiples of 4"):
        model(torch.zeros(1, 3, 18, 16))


def test_option_a_takes_every_second_pixel_between_zero_channels():
    block = build("resnet20").get_submodule("layer2.0")
    nn.init.zeros_(block.get_parameter("bn2.weight"))  # now the block gives relu(shortcut)
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    for channel in range(16):
        for row in range(4):
            for column in range(4):
                expected[0, 8 + channel, row, column] = x[0, channel, 2 * row, 2 * column]
    torch.testing.assert_close(block.eval()(x), expected)


def test_a_padded_shortcut_follows_its_attributes():
    """What surgery relies on: with narrower convolutions and other pads, the block still runs and puts the input
    there."""
    block = BasicBlock(16, 32, stride=2, shortcut="A")
    block.conv1, block.bn1 = nn.Conv2d(5, 3, 3, 2, padding=1, bias=False), nn.BatchNorm2d(3)
    block.conv2, block.bn2 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    nn.init.zeros_(block.bn2.weight)
    block.pad_before, block.pad_after = 2, 1
    x = torch.rand(1, 5, 8, 8)
    out = block.eval()(x)
    assert out.shape == (1, 8, 4, 4)
    torch.testing.assert_close(out[:, 2:7], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 7:].any()


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "classes"),
    [
        ("resnet20", {"classes": 100, "in_channels": 1, "widths": (4, 9, 12)}, (1, 20, 12), 100),
        ("resnet8", {"shortcut": "B", "widths": (12, 8, 4)}, (3, 8, 8), 10),
        ("vgg11", {"widths": (2, 3, 4, 5, 6), "classes": 7}, (3, 32, 32), 7),
        ("densenet40", {"depth": 10, "growth": 3, "stem": 5}, (3, 8, 8), 10),
        ("mobilenet_v1", {"width": 0.25}, (3, 32, 32), 10),
        ("lenet300", {"inputs": 12, "hidden": (5, 4)}, (3, 2, 2), 10),
        ("lenet5", {"channels": (2, 3), "hidden": 4, "in_channels": 3}, (3, 28, 28), 10),
        ("lenet5", {"size": 16}, (1, 16, 16), 10),
        ("lenet5", {"size": 19}, (1, 19, 19), 10),
    ],
)
def test_other_forms_run(name, arguments, shape, classes):
    assert build(name, **arguments).eval()(torch.randn(2, *shape)).shape == (2, classes)


def test_wrong_names_and_arguments_say_what_is_known():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet56'"):
        build("resnet65")
    with pytest.raises(InputError, match=r"no argument 'num_classes'; it takes .*classes"):
        build("resnet56", num_classes=100)
    with pytest.raises(InputError, match="3n \\+ 4"):
        build("densenet40", depth=41)
    with pytest.raises(InputError, match="shortcut='B'"):
        build("resnet20", widths=(64, 32, 16))
    with pytest.raises(InputError, match="size=15 must be 16"):
        build("lenet5", size=15)
    with pytest.raises(UnknownNameError, match="known: 11, 16, 19"):
        VGG(13)


def test_the_page_of_the_zoo_has_the_tables_numbers():
    page = (Path(__file__).resolve().parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    for name, entry in MODELS.items():
        shape = "x".join(map(str, entry.input_shape))
        assert f"| `{name}` | {shape} | {entry.parameters:,} | {entry.macs:,} | {entry.paper} |" in page
