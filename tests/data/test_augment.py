"""Shifts and mirror images against a loop that moves one pixel at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.data import ShiftFlip
from prunus.errors import InputError


def moved_by_hand(image: torch.Tensor, down: int, right: int, mirrored: int) -> torch.Tensor:
    """Mirror, then move; black comes in."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row, column = i - down, j - right
                if mirrored:
                    column = width - 1 - j - right
                if 0 <= row < height and 0 <= column < width:
                    out[c, i, j] = image[c, row, column]
    return out


@settings(deadline=None, max_examples=40)
@given(
    shift=st.integers(0, 4),
    flip=st.booleans(),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_each_image_is_moved_as_drawn(shift, flip, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (5, 3, height, width), dtype=torch.uint8, generator=generator)
    augmentation = ShiftFlip(shift, flip)
    drawn = augmentation.draw(5, generator)
    out = augmentation.apply(images, drawn)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    for image, result, (down, right, mirrored) in zip(images, out, drawn.tolist()):
        assert torch.equal(result, moved_by_hand(image, down, right, mirrored))


def test_draws_cover_the_whole_range_evenly():
    drawn = ShiftFlip(2).draw(5000, torch.Generator().manual_seed(0))
    for column in (0, 1):
        counts = (drawn[:, column] + 2).bincount()
        assert len(counts) == 5
        assert counts.min() > 850  # 1000 expected, standard deviation 28
    assert 2350 < int(drawn[:, 2].sum()) < 2650
    assert not ShiftFlip(2, flip=False).draw(100, torch.Generator())[:, 2].any()


def test_no_shift_and_no_flip_is_no_change():
    images = torch.rand(3, 1, 4, 5)
    augmentation = ShiftFlip(0, flip=False)
    assert torch.equal(augmentation.apply(images, augmentation.draw(3, torch.Generator())), images)


def test_a_negative_shift_is_refused():
    with pytest.raises(InputError, match="shift=-1"):
        ShiftFlip(-1)
