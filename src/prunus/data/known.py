"""The data sets that are known by name: digits, mnist, cifar10."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import MissingExtraError, StoredFileError
from .arrays import About, Pair, from_arrays
from .augment import ShiftFlip
from .files import read_npz
from .partition import split_off
from .root import cache_folder
from .split import DataSource

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS = tuple("0123456789")


def digits() -> DataSource:
    """1,797 real handwritten digits of 8x8 grey pixels, which come with scikit-learn: 1,257 / 180 / 360.

    The split is stratified and always the same.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test set).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(pixels).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = np.asarray(labels, dtype=np.int64)
    rest, test = split_off(labels, 360 / 1797, seed=0)
    train, validation = split_off(labels[rest], 180 / 1437, seed=0)
    parts = {"train": rest[train], "validation": rest[validation], "test": test}
    about = About("digits", _DIGITS, augmentation=ShiftFlip(1, flip=False))
    return from_arrays(about, {part: (images[chosen], labels[chosen]) for part, chosen in parts.items()})


def mnist(root: Path, *, seed: int, validation: float) -> DataSource:
    """Handwritten digits of 28x28 grey pixels, official split, from root/mnist/mnist.npz.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
    """
    stored = read_npz(root / "mnist" / "mnist.npz")
    parts = {
        part: _pair(root / "mnist" / "mnist.npz", stored, f"{part}_images", f"{part}_labels")
        for part in ("train", "test")
    }
    about = About("mnist", _DIGITS, mean=(0.1307,), std=(0.3081,))
    return from_arrays(about, parts, seed=seed, validation=validation)


def cifar10(root: Path, *, seed: int, validation: float) -> DataSource:
    """Photographs of 32x32 colour pixels in 10 classes, official split, from root/cifar10/train_1..5.npz and test.npz.

    Decoding takes a while; decoded images are kept in the user's cache folder ($PRUNUS_CACHE).

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    folder = root / "cifar10"
    batches = [_cifar_file(folder / f"train_{i}.npz") for i in range(1, 6)]
    train = np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])
    about = About(
        "cifar10",
        CIFAR10_CLASSES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=ShiftFlip(4),
    )
    return from_arrays(
        about, {"train": train, "test": _cifar_file(folder / "test.npz")}, seed=seed, validation=validation
    )


def _pair(path: Path, stored: dict[str, np.ndarray], images: str, labels: str) -> Pair:
    absent = [key for key in (images, labels) if key not in stored]
    if absent:
        raise StoredFileError(f"{path} holds {', '.join(sorted(stored))}, but not {' and '.join(absent)}")
    return stored[images], stored[labels]


def _cifar_file(path: Path) -> Pair:
    """(N, 3, 32, 32) uint8 images and labels of one file of WebP sheets."""
    stored = read_npz(path)
    sheets, labels = _pair(path, stored, "sheet_bytes", "labels")
    offsets, _ = _pair(path, stored, "sheet_offsets", "labels")
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = cache_folder() / f"cifar10-{key}.npy"
    images = _cached(kept, (len(labels), 3, 32, 32))
    if images is None:
        images = _decode_sheets(path, sheets, offsets)
        _keep(kept, images)
    return images, labels


def _decode_sheets(path: Path, sheets: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError.of("pillow", "vision", "decoding cifar10") from error
    raw = sheets.tobytes()

    def decode(span: tuple[int, int]) -> np.ndarray:
        with Image.open(io.BytesIO(raw[span[0] : span[1]])) as image:
            sheet = np.asarray(image.convert("RGB"))  # 40 rows of 25 pictures
        return sheet.reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoder runs outside Python's lock
            return np.concatenate(list(pool.map(decode, zip(offsets[:-1].tolist(), offsets[1:].tolist()))))
    except (OSError, ValueError) as error:
        raise StoredFileError(f"{path}: a sheet of images cannot be decoded ({error}); fetch the file again") from error


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The kept copy, or None where there is none that can be used."""
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _keep(path: Path, images: np.ndarray) -> None:
    """Write the copy under a temporary name and rename it; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.save(file, images, allow_pickle=False)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError:
        return
