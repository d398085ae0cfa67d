"""Arrays from files: `npz:PATH` and `folder:PATH`, and the guarded reading of .npz that every source uses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ..errors import InputError, MissingExtraError, ShapeError, StoredFileError
from .arrays import About, Pair, from_arrays
from .split import DataSource

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})

_PARTS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file. Arrays of Python objects are never opened.

    Raises:
        StoredFileError: The file is missing, damaged, no .npz, or holds Python objects.
    """
    if not path.is_file():
        raise StoredFileError(f"{path} does not exist or is not a file; give the path of an .npz file")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise StoredFileError(f"{path} is a single array; store images and labels together with numpy.savez")
        with stored:
            return {key: stored[key] for key in stored}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise StoredFileError(
                f"{path} is no .npz file or holds Python objects, which are never opened; store plain numeric "
                f"arrays with numpy.savez"
            ) from error
        raise StoredFileError(f"{path} cannot be read as .npz ({error}); write it again with numpy.savez") from error


def npz_source(path: Path, *, seed: int, validation: float) -> DataSource:
    """A source from one .npz file.

    Keys: `train_images`, `train_labels`, and if there are any `val_images`, `val_labels`, `test_images`,
    `test_labels`; or `images` and `labels`, of which a fifth becomes the test split. `class_names` (text) is optional;
    other keys are left alone.
    """
    stored = read_npz(path)
    stems = {part: next((s for s in stems if f"{s}_images" in stored), None) for part, stems in _PARTS.items()}
    keys = {part: (f"{stem}_images", f"{stem}_labels") for part, stem in stems.items() if stem}
    if not keys and "images" in stored:
        keys = {"train": ("images", "labels")}
    absent = [key for pair in keys.values() for key in pair if key not in stored]
    if "train" not in keys or absent:
        raise InputError(
            f"{path} holds "
            f"{', '.join(sorted(stored)) or 'nothing'}{'; missing: ' + ', '.join(absent) if absent else ''}. It needs "
            "train_images and train_labels (and if there are any val_..., test_...), or images and labels"
        )
    names = tuple(str(n) for n in stored.get("class_names", ()))
    parts = {part: (stored[images], stored[labels]) for part, (images, labels) in keys.items()}
    return from_arrays(About(f"npz:{path}", names), parts, seed=seed, validation=validation)


def folder_source(path: Path, *, seed: int, validation: float) -> DataSource:
    """A source from image folders PATH/train/CLASS/*.png, and if there are any PATH/val/... and PATH/test/...

    Classes are the names of the folders in train, sorted. All images must have one size; they are read as grey if
    every one is grey, as RGB otherwise. Without test/ a fifth of the images becomes the test split.
    """
    if not (path / "train").is_dir():
        raise StoredFileError(
            f"{path / 'train'} is not a folder; folder:PATH needs PATH/train/CLASS/*.png (val/ and test/ may follow)"
        )
    folders = {part: next((path / s for s in stems if (path / s).is_dir()), None) for part, stems in _PARTS.items()}
    names = tuple(sorted(p.name for p in (path / "train").iterdir() if p.is_dir()))
    if not names:
        raise StoredFileError(
            f"{path / 'train'} holds no class folders; put the images of each class into a folder of its own"
        )
    listed = {part: _listed(folder, names) for part, folder in folders.items() if folder}
    grey = all(mode in ("1", "L") for files in listed.values() for mode in _modes(files))
    parts = {part: _read_images(files, "L" if grey else "RGB") for part, files in listed.items()}
    return from_arrays(About(f"folder:{path}", names), parts, seed=seed, validation=validation)


def _listed(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(file, class number) of every image below folder/CLASS."""
    strangers = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in names)
    if strangers:
        raise StoredFileError(f"{folder} has class folders that train/ does not have: {', '.join(strangers[:5])}")
    listed = []
    for number, name in enumerate(names):
        inside = (folder / name).iterdir() if (folder / name).is_dir() else ()
        files = sorted(p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise StoredFileError(
                f"{folder / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); every class needs some "
                f"in each split"
            )
        listed += [(file, number) for file in files]
    return listed


def _open_image(file: Path):
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError.of("pillow", "vision", "reading image files") from error
    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError) as error:
        raise StoredFileError(f"{file} cannot be read as an image ({error}); remove it or write it again") from error


def _modes(files: list[tuple[Path, int]]):
    for file, _ in files:
        with _open_image(file) as image:
            yield image.mode


def _read_images(files: list[tuple[Path, int]], mode: str) -> Pair:
    images = []
    for file, _ in files:
        with _open_image(file) as image:
            try:
                images.append(np.asarray(image.convert(mode)))
            except (OSError, SyntaxError) as error:
                raise StoredFileError(f"{file} is damaged ({error}); remove it or write it again") from error
        if images[-1].shape != images[0].shape:
            raise ShapeError(
                f"{file} is {images[-1].shape[:2]} pixels (height, width), {files[0][0]} is "
                f"{images[0].shape[:2]}; bring all images to one size"
            )
    stacked = np.stack(images)
    channels_first = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
    return channels_first, np.array([number for _, number in files], dtype=np.int64)
