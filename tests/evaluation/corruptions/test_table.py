"""What every corruption obeys, and what each does, against closed forms and independent conversions."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.evaluation.corruptions import CORRUPTIONS, MISSING, corrupt, unavailable
from prunus.evaluation.corruptions.blur import glass_blur
from prunus.evaluation.corruptions.digital import contrast, elastic_transform, jpeg, pixelate, saturate
from prunus.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from prunus.evaluation.corruptions.weather import brightness, fog, plasma

SHAPES = [(6, 3, 32, 32), (6, 1, 8, 8), (6, 3, 9, 14), (6, 1, 4, 4)]


def photos(*shape: int) -> torch.Tensor:
    """Smooth images in [0, 1] with detail, unlike noise."""
    rows = torch.linspace(0, 3, shape[2]).view(1, 1, -1, 1)
    columns = torch.linspace(0, 3, shape[3]).view(1, 1, 1, -1)
    return (
        (0.5 + 0.4 * torch.sin(rows * torch.arange(1, shape[0] + 1).view(-1, 1, 1, 1) + columns)).expand(shape).clone()
    )


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_keeps_shape_range_and_inputs_and_depends_on_the_seed_alone(name, shape):
    if name in unavailable(shape[1]):
        pytest.skip(unavailable(shape[1])[name])
    x = photos(*shape)
    before = x.clone()
    for severity in (1, 5):
        torch.manual_seed(severity)  # the global generator must not matter
        first, second = (corrupt(x, name, severity, seed=3, part=1) for _ in range(2))
        assert first.shape == x.shape
        assert first.dtype == torch.float32
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_are_changed_and_a_higher_severity_changes_more(name):
    if name in unavailable(3):
        pytest.skip(unavailable(3)[name])
    if name in ("saturate", "elastic_transform"):
        pytest.skip("its severities differ in kind")
    torch.manual_seed(0)
    x = (photos(16, 3, 32, 32) + 0.1 * torch.randn(16, 3, 32, 32)).clamp(0, 1)
    distances = [(corrupt(x, name, s) - x).abs().mean().item() for s in range(1, 6)]
    assert distances[0] > 1e-4
    assert distances[4] > distances[0]


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "motion_blur", "snow", "fog", "elastic_transform"])
def test_parts_and_seeds_and_images_differ(name):
    x = photos(1, 3, 32, 32).repeat(2, 1, 1, 1)
    first = corrupt(x, name, 3)
    assert not torch.equal(first, corrupt(x, name, 3, part=1))
    assert not torch.equal(first, corrupt(x, name, 3, seed=1))
    assert not torch.equal(first[0], first[1])


def test_noises_have_the_spread_that_they_say():
    x = torch.full((20, 3, 64, 64), 0.5)
    for sigma in (0.04, 0.1):
        assert (gaussian_noise(x, sigma, g()) - x).std().item() == pytest.approx(sigma, rel=0.01)
        assert (speckle_noise(x, sigma, g()) - x).std().item() == pytest.approx(sigma * 0.5, rel=0.01)
    shot = shot_noise(x, 50, g())
    assert shot.mean().item() == pytest.approx(0.5, rel=0.01)
    assert shot.std().item() == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)  # a Poisson count's variance is its mean
    hit = impulse_noise(x, 0.07, g())
    assert (hit != x).float().mean().item() == pytest.approx(0.07, rel=0.03)
    assert (hit == 1).float().mean().item() == pytest.approx(0.035, rel=0.05)
    assert set(hit.unique().tolist()) == {0.0, 0.5, 1.0}


def test_contrast_of_one_changes_nothing_and_of_zero_leaves_the_mean():
    x = photos(3, 3, 8, 8)
    torch.testing.assert_close(contrast(x, 1.0, g()), x)
    torch.testing.assert_close(contrast(x, 0.0, g()), x.mean((2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(contrast(x, 0.3, g()).std((2, 3)), 0.3 * x.std((2, 3)))


def through_hsv(x: torch.Tensor, change) -> torch.Tensor:
    """The standard library's conversion there and back, pixel by pixel."""
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return torch.tensor(changed).view(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2)


def test_brightness_and_saturation_are_those_of_hsv():
    x = torch.rand(2, 3, 6, 6)
    x[0, :, 0, 0] = 0.0  # black
    x[0, :, 0, 1] = 0.7  # grey
    x[0, :, 0, 2] = 1.0  # white
    for more in (0.05, 0.3):
        expected = through_hsv(x, lambda h, s, v, more=more: (h, s, min(v + more, 1)))
        torch.testing.assert_close(brightness(x, more, g()), expected, atol=1e-6, rtol=0)
    for factor, more in ((0.3, 0.0), (2.5, 0.2)):
        expected = through_hsv(x, lambda h, s, v, f=factor, m=more: (h, min(s * f + m, 1), v))
        torch.testing.assert_close(saturate(x, (factor, more), g()), expected, atol=1e-6, rtol=0)


def test_brightness_of_one_channel_is_an_addition():
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(brightness(x, 0.2, g()), (x + 0.2).clamp(max=1))


def test_glass_is_the_scan_that_made_the_benchmark():
    x = torch.rand(2, 3, 12, 10)
    for passes in (1, 2):
        found = glass_blur(x, (0.05, passes), g(7))  # so small a sigma blurs nothing
        expected, generator = x.permute(0, 2, 3, 1).numpy().copy(), g(7)
        for _ in range(passes):
            up, left = torch.randint(0, 2, (2, 2, 12, 10), generator=generator).numpy()
            for i, image in enumerate(expected):
                for h in range(12 - 1, 1, -1):
                    for w in range(10 - 1, 1, -1):
                        other = h - up[i, h, w], w - left[i, h, w]
                        image[h, w], image[other] = image[other], image[h, w]  # of views: the second is overwritten
        assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert not torch.equal(found, x)


def test_fog_on_black_stays_black_and_clouds_fill_their_range():
    assert torch.equal(fog(torch.zeros(2, 1, 8, 8), (0.5, 3.0), g()), torch.zeros(2, 1, 8, 8))
    clouds = plasma(5, 32, 2.0, g())
    assert torch.equal(clouds.amin((1, 2)), torch.zeros(5, dtype=torch.float64))
    assert torch.equal(clouds.amax((1, 2)), torch.ones(5, dtype=torch.float64))
    neighbours = (clouds - clouds.roll(1, 1)).abs().mean()
    strangers = (clouds - clouds.roll(16, 1)).abs().mean()
    assert neighbours < strangers / 2  # smooth, unlike noise
    assert (plasma(5, 32, 3.0, g()) - plasma(5, 32, 3.0, g()).roll(1, 1)).abs().mean() < neighbours  # and more so


def test_an_elastic_transform_without_strength_and_reach_changes_nothing():
    x = photos(3, 3, 9, 12)
    torch.testing.assert_close(elastic_transform(x, (0.0, 0.0, 0.0), g()), x, atol=1e-5, rtol=0)


def test_displacements_are_scipys():
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy, the oracle, is not installed")
    x = torch.rand(1, 1, 16, 16)
    generator = g(5)
    found = elastic_transform(x, (0.1, 0.04, 0.0), generator)
    generator = g(5)
    torch.rand(1, 3, 2, generator=generator, dtype=torch.float64)  # what the affine map draws
    noise = (torch.rand(1, 2, 16, 16, generator=generator) * 2 - 1).numpy()[0]
    moves = [ndimage.gaussian_filter(part, 0.64, mode="reflect", truncate=3) * 1.6 for part in noise]
    rows, columns = np.mgrid[:16, :16]
    at = [rows + moves[1], columns + moves[0]]
    expected = ndimage.map_coordinates(x[0, 0].numpy(), at, order=1, mode="reflect")
    torch.testing.assert_close(found[0, 0], torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_an_affine_map_moves_the_three_points_where_it_says():
    # A white dot at a point that the map moves must turn up where the point went.
    size = 33
    generator = g(2)
    move = (torch.rand(1, 3, 2, generator=generator, dtype=torch.float64) * 2 - 1) * 0.08 * size
    x = torch.zeros(1, 1, size, size)
    column, row = 16 + 11, 16 + 11
    x[0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1
    found = elastic_transform(x, (0.0, 0.0, 0.08), g(2))[0, 0]
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre = [(found * axis).sum().item() / found.sum().item() for axis in (columns, rows)]
    assert centre == pytest.approx([column + move[0, 0, 0].item(), row + move[0, 0, 1].item()], abs=0.3)


def test_pixelate_has_few_distinct_values_and_jpeg_errs_more_at_low_quality():
    x = torch.rand(1, 1, 32, 32)
    assert len(pixelate(x, 0.65, g()).unique()) <= 20 * 20
    pytest.importorskip("PIL", reason="Pillow is not installed")
    photo = photos(4, 3, 32, 32)
    fine, coarse = ((jpeg(photo, quality, g()) - photo).abs().mean() for quality in (95, 10))
    assert 0 < fine < coarse < 0.1


@pytest.mark.parametrize(
    ("shape", "name", "severity", "error", "says"),
    [
        ((1, 3, 8, 8), "fgo", 1, UnknownNameError, "'fog'"),
        ((1, 3, 8, 8), "frost", 1, InputError, "photographs"),
        ((1, 3, 8, 8), "fog", 6, InputError, "severity: got 6"),
        ((1, 3, 8, 8), "fog", 0, InputError, "severity: got 0"),
        ((1, 1, 8, 8), "saturate", 1, InputError, "3 channels"),
        ((3, 8, 8), "fog", 1, ShapeError, "N, C, H, W"),
        ((1, 3, 3, 8), "fog", 1, ShapeError, "sides >= 4"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(shape, name, severity, error, says):
    with pytest.raises(error, match=says):
        corrupt(torch.rand(*shape), name, severity)


def test_the_benchmarks_fifteen_and_four_are_all_here_or_said_to_be_missing():
    own = {name for name, corruption in CORRUPTIONS.items() if not corruption.extra}
    assert len(own | {"frost"}) == 15
    assert {name for name, c in CORRUPTIONS.items() if c.extra} | {"spatter"} == {
        "speckle_noise",
        "gaussian_blur",
        "saturate",
        "spatter",
    }
    assert set(MISSING) == {"frost", "spatter"}
    assert all(len(c.severities) == 5 for c in CORRUPTIONS.values())
