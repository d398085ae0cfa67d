"""digits, mnist and cifar10: the real images, in the documented splits; and the cache of decoded sheets."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prunus.data import ShiftFlip, load
from prunus.errors import MissingExtraError, StoredFileError


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    source = load("digits")
    assert [len(s) for s in source.splits.values()] == [1257, 180, 360]
    assert source.classes == 10
    for split in source.splits.values():
        shares = split.targets.bincount().double() / len(split)
        assert (shares - 0.1).abs().max() < 0.01
    ours = torch.cat([s.inputs.flatten(1) for s in source.splits.values()])
    theirs = np.round(np.asarray(load_digits(return_X_y=True)[0]) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours.numpy())) == sorted(map(bytes, theirs))
    assert load("digits", seed=5, validation=0.4).hashes == source.hashes
    assert source.hashes["test"] == "bc2e8f09c4d60df3897db28a209993817444788be3093565aba4e8ae757749d0"


def test_digits_labels_stand_beside_their_images():
    images, labels = (np.asarray(a) for a in load_digits(return_X_y=True))
    known = {bytes(np.round(i * 255 / 16).astype(np.uint8).ravel()): int(t) for i, t in zip(images, labels)}
    test = load("digits").test
    assert [known[bytes(i.numpy())] for i in test.inputs.flatten(1)] == test.targets.tolist()


def test_mnist(data_root):
    source = load("mnist", root=data_root, validation=0.1)
    assert [len(s) for s in source.splits.values()] == [54_000, 6_000, 10_000]
    assert source.test.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the official order
    pixels = torch.cat([source.train.inputs, source.validation.inputs]).double() / 255
    assert float(pixels.mean()) == pytest.approx(source.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(source.std[0], abs=1e-4)


def test_cifar10(data_root):
    source = load("cifar10", root=data_root)
    assert [len(s) for s in source.splits.values()] == [45_000, 5_000, 10_000]
    assert source.validation.targets.bincount().tolist() == [500] * 10
    assert source.test.targets.bincount().tolist() == [1000] * 10
    assert source.train.augmentation == ShiftFlip(4)
    assert source.test.augmentation is None
    total, squares = np.zeros(3), np.zeros(3)
    for split in (source.train, source.validation):
        values = split.inputs.numpy()
        for channel in range(3):
            counts = np.bincount(values[:, channel].ravel(), minlength=256)
            total[channel] += counts @ np.arange(256) / 255
            squares[channel] += counts @ (np.arange(256) / 255) ** 2
    mean = total / (50_000 * 1024)
    np.testing.assert_allclose(mean, source.mean, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(squares / (50_000 * 1024) - mean**2), source.std, atol=1e-4)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A data folder with one sheet of 1,000 images a file; returns the folder and the images by file."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cifar10").mkdir()
    # A colour of its own for each picture, and a slope that tells rows from columns; noise would take long to encode.
    slope = (np.arange(32)[:, None] + 3 * np.arange(32))[None, :, :, None]
    made = {}
    for number, name in enumerate(["train_1", "train_2", "train_3", "train_4", "train_5", "test"]):
        tiles = (np.random.default_rng(number).integers(0, 256, (1000, 1, 1, 3)) + slope).astype(np.uint8)
        sheet = np.concatenate([np.concatenate(list(tiles[25 * row : 25 * row + 25]), axis=1) for row in range(40)])
        file = io.BytesIO()
        image.fromarray(sheet).save(file, "WEBP", lossless=True)
        raw = np.frombuffer(file.getvalue(), dtype=np.uint8)
        np.savez(
            tmp_path / "cifar10" / f"{name}.npz",
            sheet_bytes=raw,
            sheet_offsets=np.array([0, len(raw)]),
            labels=np.arange(1000, dtype=np.uint8) % 10,
        )
        made[name] = tiles
    return tmp_path, made


def test_cifar_sheets_are_taken_apart_row_by_row(small_cifar):
    root, made = small_cifar
    source = load("cifar10", root=root, validation=0)
    assert np.array_equal(source.test.inputs.permute(0, 2, 3, 1).numpy(), made["test"])
    assert np.array_equal(source.train.inputs[3000:4000].permute(0, 2, 3, 1).numpy(), made["train_4"])


def test_cifar_is_decoded_once(small_cifar, monkeypatch):
    root, _ = small_cifar
    first = load("cifar10", root=root).hashes
    kept = sorted((root / "cache").iterdir())
    assert len(kept) == 6
    assert all(file.suffix == ".npy" for file in kept), "temporary files were left behind"
    monkeypatch.setattr("prunus.data.known._decode_sheets", lambda *_: pytest.fail("decoded again"))
    assert load("cifar10", root=root).hashes == first


def test_a_damaged_cache_is_replaced_and_an_unwritable_one_ignored(small_cifar, monkeypatch):
    root, _ = small_cifar
    first = load("cifar10", root=root).hashes
    victims = sorted((root / "cache").iterdir())
    victims[0].write_bytes(victims[0].read_bytes()[:5000])
    np.save(victims[1], np.zeros((2, 2)))
    victims[2].write_bytes(b"")
    assert load("cifar10", root=root).hashes == first
    assert np.load(victims[0]).shape == (1000, 3, 32, 32)
    (root / "a file").write_text("")
    monkeypatch.setenv("PRUNUS_CACHE", str(root / "a file" / "cache"))
    assert load("cifar10", root=root).hashes == first


def test_cifar_that_is_damaged_or_cannot_be_decoded_says_so(small_cifar, monkeypatch):
    root, _ = small_cifar
    path = root / "cifar10" / "test.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "sheet_bytes": arrays["sheet_bytes"][::-1]})
    with pytest.raises(StoredFileError, match=r"test.npz: a sheet of images cannot be decoded"):
        load("cifar10", root=root)
    np.savez(path, labels=arrays["labels"])
    with pytest.raises(StoredFileError, match="holds labels, but not sheet_bytes"):
        load("cifar10", root=root)
    path.unlink()
    with pytest.raises(StoredFileError, match="test.npz does not exist"):
        load("cifar10", root=root)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setenv("PRUNUS_CACHE", str(root / "empty"))
    with pytest.raises(MissingExtraError, match=r"prunus\[vision\]"):
        load("cifar10", root=root)
