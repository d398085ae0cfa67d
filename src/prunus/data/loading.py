"""Names become data sources here, and only here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UnknownNameError
from .blobs import blobs
from .factory import factory_source
from .files import folder_source, npz_source
from .known import cifar10, digits, mnist
from .root import find_root
from .split import DataSource


@dataclass(frozen=True, slots=True)
class Request:
    """What `load` was asked for; `argument` is what stands behind the colon of a spec."""

    argument: str
    seed: int
    validation: float
    root: str | Path | None


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of data: how it is written, what it is, and the function that loads it."""

    usage: str
    what: str
    load: Callable[[Request], DataSource]


SOURCES: Mapping[str, Source] = {
    "digits": Source("digits", "scikit-learn's 1,797 real 8x8 digits; its split is fixed", lambda r: digits()),
    "mnist": Source(
        "mnist",
        "28x28 digits, from the data folder",
        lambda r: mnist(find_root(r.root), seed=r.seed, validation=r.validation),
    ),
    "cifar10": Source(
        "cifar10",
        "32x32 photographs, from the data folder",
        lambda r: cifar10(find_root(r.root), seed=r.seed, validation=r.validation),
    ),
    "blobs": Source("blobs", "synthetic 16x16 images, drawn from the seed", lambda r: blobs(seed=r.seed)),
    "npz": Source(
        "npz:PATH",
        "an .npz file with train_images, train_labels, ... or images, labels",
        lambda r: npz_source(Path(r.argument).expanduser(), seed=r.seed, validation=r.validation),
    ),
    "folder": Source(
        "folder:PATH",
        "image folders PATH/train/CLASS/*.png, val/..., test/...",
        lambda r: folder_source(Path(r.argument).expanduser(), seed=r.seed, validation=r.validation),
    ),
}


def load(
    spec: str,
    *,
    seed: int = 0,
    validation: float = 0.1,
    root: str | Path | None = None,
    limit: int | None = None,
) -> DataSource:
    """Load the data that a spec names.

    Args:
        spec: A name or `kind:argument` of SOURCES, or `package.module:factory`.
        seed: Of the validation split (and of synthetic data).
        validation: Fraction of the training samples that becomes the validation split, stratified, where the source
            has none of its own.
        root: Folder of cifar10/ and mnist/; default $PRUNUS_DATA, else ../shared/data.
        limit: At most so many samples in each split, stratified, always the same; None takes all.

    Raises:
        UnknownNameError: No source has that name.
        InputError: An argument is out of range, or the data cannot be used.
        StoredFileError: A file or folder is missing or damaged.
        MissingExtraError: Pillow is needed and not installed.

    >>> load("digits").train
    Split(1257 samples of (1, 8, 8) torch.uint8)
    """
    if not 0 <= validation < 1:
        raise InputError(f"validation={validation}: the fraction to split off must be at least 0 and below 1")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: give a number of samples of 1 or more, or None for all")
    source = _loaded(spec, seed=seed, validation=validation, root=root)
    if limit is None:
        return source
    cut = {part: split.subset(min(limit, len(split))) for part, split in source.splits.items()}
    return dataclasses.replace(source, **cut)


def _loaded(spec: str, *, seed: int, validation: float, root: str | Path | None) -> DataSource:
    kind, colon, argument = spec.partition(":")
    source = SOURCES.get(kind)
    if source is None:
        if colon and kind and argument:
            return factory_source(spec, seed=seed, validation=validation)
        raise UnknownNameError.of("data", spec, [*(s.usage for s in SOURCES.values()), "package.module:factory"])
    takes_argument = ":" in source.usage
    if takes_argument != bool(argument):
        raise InputError(f"data {spec!r}: write {source.usage} ({source.what})")
    return source.load(Request(argument, seed, validation, root))
