"""Pixels and inputs: there and back, the range checked, samples taken as asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.data.split import Split
from prunus.errors import InputError
from prunus.evaluation.context import Context
from prunus.evaluation.pixels import SPACE_OPTIONS, PixelSpace, pixels_of, space_of

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def split(n: int = 10) -> Split:
    inputs = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8)
    return Split(inputs, torch.arange(n) % 2, MEAN, STD)


def context(data, **options) -> Context:
    return Context(nn.Identity(), data, batch_size=4, options={**SPACE_OPTIONS, **options})


def test_inputs_made_of_pixels_lead_back_to_them():
    space, pixels = PixelSpace(MEAN, STD), torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(space.to_pixels(space.to_inputs(pixels)), pixels)
    torch.testing.assert_close(space.to_inputs(torch.tensor(MEAN).view(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))
    assert torch.equal(PixelSpace().to_inputs(pixels), pixels)


def test_a_split_gives_its_own_pixels():
    data = split()
    found = pixels_of(context(data))
    torch.testing.assert_close(torch.cat([x for x, _ in found.batches]), data.inputs.float() / 255)
    assert found.n == 10


def test_of_a_split_samples_keep_the_proportions_and_of_batches_the_first_are_taken():
    assert (
        sorted(torch.cat([y for _, y in pixels_of(context(split(), samples=6)).batches]).tolist()) == [0] * 3 + [1] * 3
    )
    batches = [(torch.rand(4, 3, 2, 2), torch.arange(4) + 4 * i) for i in range(3)]
    assert torch.cat([y for _, y in pixels_of(context(batches, samples=6)).batches]).tolist() == [0, 1, 2, 3, 4, 5]
    assert pixels_of(context(batches, samples=None)).n == 12


def test_options_come_before_the_split():
    space = space_of(split(), {**SPACE_OPTIONS, "mean": (0, 0, 0), "std": (1, 1, 1)})
    assert space.mean == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        ([(torch.randn(4, 3, 2, 2) * 5, torch.zeros(4).long())], {}, "options mean and std"),
        ([(torch.zeros(4, 3).long(), torch.zeros(4).long())], {}, "one floating tensor"),
        ([({"x": torch.rand(4, 3)}, torch.zeros(4).long())], {}, "one floating tensor"),
        ([(torch.rand(4, 3, 2, 2), torch.zeros(4, 2, 2).long())], {}, "class per sample"),
        ([], {}, "no batch"),
        (split(), {"samples": 0}, "samples=0"),
        (split(), {"low": 1.0}, "low < high"),
        (split(), {"std": (1.0, 0.0, 1.0)}, "std > 0"),
    ],
)
def test_data_without_pixels_are_refused(data, options, says):
    with pytest.raises(InputError, match=says):
        pixels_of(context(data, **options))
