"""Filters against SciPy, Pillow and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus.evaluation.corruptions.filters import (
    border_indices,
    box_resize,
    clipped_zoom,
    disk_kernel,
    filter2d,
    gaussian_filter,
    grey,
    motion_filter,
    pad,
    shifted,
)

ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy, the oracle, is not installed")


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def each(x: torch.Tensor, function) -> torch.Tensor:
    """`function` of every channel of every image, stacked."""
    return torch.stack([torch.stack([torch.from_numpy(function(c.numpy())) for c in image]) for image in x])


@pytest.mark.parametrize(
    ("border", "numpy_mode"), [("nearest", "edge"), ("reflect", "symmetric"), ("mirror", "reflect")]
)
@pytest.mark.parametrize("margin", [1, 3, 7, 12])
def test_borders_are_numpys(border, numpy_mode, margin):
    x = images(1, 2, 5, 4)
    expected = each(x, lambda c: np.pad(c, margin, mode=numpy_mode))
    torch.testing.assert_close(pad(x, margin, margin, border), expected)


def test_a_single_pixel_has_a_border_too():
    assert border_indices(1, 2, "mirror").tolist() == [0] * 5


@pytest.mark.parametrize("border", ["nearest", "reflect"])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_gaussian_blur_is_scipys(sigma, border):
    x = images(2, 3, 8, 9)
    expected = each(x, lambda c: ndimage.gaussian_filter(c, sigma, mode=border, truncate=4.0))
    torch.testing.assert_close(gaussian_filter(x, sigma, border), expected)


def test_correlation_is_scipys():
    x, kernel = images(2, 3, 8, 9), images(3, 5)
    expected = each(x, lambda c: ndimage.correlate(c, kernel.numpy(), mode="mirror"))
    torch.testing.assert_close(filter2d(x, kernel, "mirror"), expected)


def test_a_disk_of_less_than_a_pixel_is_the_softening_alone_and_all_disks_sum_to_one():
    side = np.exp(-0.5 / 0.4**2)
    soft = np.array([side, 1, side]) / (1 + 2 * side)
    torch.testing.assert_close(disk_kernel(0.3, 0.4), torch.from_numpy(np.outer(soft, soft)))
    hard = disk_kernel(1.5, 0.01)  # hardly softened: the nine pixels within 1.5
    torch.testing.assert_close(hard, torch.nn.functional.pad(torch.full((3, 3), 1 / 9, dtype=torch.float64), (1,) * 4))
    assert disk_kernel(1.0, 0.2).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.11, 1.25, 1.75, 2.25])
@pytest.mark.parametrize("size", [8, 32])
def test_zoom_is_scipys(factor, size):
    x = images(1, 2, size, size)

    def zoomed(c: np.ndarray) -> np.ndarray:
        kept = int(np.ceil(size / factor))
        top = (size - kept) // 2
        large = ndimage.zoom(c[top : top + kept, top : top + kept], factor, order=1)
        trim = (large.shape[0] - size) // 2
        return large[trim : trim + size, trim : trim + size]

    torch.testing.assert_close(clipped_zoom(x, factor), each(x, zoomed))


def test_shifts_differ_by_image_and_repeat_the_border():
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat(2, 1, 1, 1)
    moved = shifted(x, torch.tensor([1, 0]), torch.tensor([0, -2]))
    assert moved[0, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    assert moved[1, 0].tolist() == [[0, 0, 0], [3, 3, 3], [6, 6, 6]]


def test_motion_to_the_right_and_down_by_hand():
    x = torch.zeros(2, 1, 5, 5)
    x[:, :, 2, 2] = 1
    smeared = motion_filter(x, radius=1, sigma=1.0, degrees=torch.tensor([0.0, 90.0]))
    weights = torch.exp(-0.5 * torch.arange(3.0) ** 2)
    weights /= weights.sum()
    torch.testing.assert_close(smeared[0, 0, 2, :3], weights.flip(0))  # (2, 0) takes from (2, 2), two to its right
    torch.testing.assert_close(smeared[1, 0, :3, 2], weights.flip(0))
    torch.testing.assert_close(smeared.sum((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize(("small", "size"), [(30, 32), (20, 32), (7, 8), (5, 8), (32, 20)])
def test_box_resizing_is_pillows(small, size):
    image = pytest.importorskip("PIL.Image", reason="Pillow, the oracle, is not installed")
    x = torch.rand(1, 1, size, size)
    expected = np.array(image.fromarray(x[0, 0].numpy(), mode="F").resize((small, small), image.Resampling.BOX))
    torch.testing.assert_close(box_resize(x, small, small)[0, 0], torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_grey_of_primaries_and_of_one_channel():
    primaries = torch.eye(3).view(3, 3, 1, 1)
    assert grey(primaries).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    assert grey(primaries[:, :1]) is not None
    assert torch.equal(grey(primaries[:, :1]), primaries[:, :1])
