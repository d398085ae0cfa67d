"""Where real data sets and pretrained weights lie, and where decoded copies may be kept."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import StoredFileError

# In a checkout, this file is src/prunus/data/root.py; the folder beside the checkout is the second place to look.
_BESIDE_CHECKOUT = Path(__file__).resolve().parents[4] / "shared" / "data"


def find_root(root: str | Path | None = None) -> Path:
    """The folder that holds cifar10/, mnist/, pretrained_cifar10/: `root`, else $PRUNUS_DATA, else ../shared/data
    relative to the checkout and then to the working folder.

    Raises:
        StoredFileError: None of them is a folder, or the one named is not.
    """
    named = root or os.environ.get("PRUNUS_DATA")
    if named:
        folder = Path(named).expanduser()
        if folder.is_dir():
            return folder
        given = "root" if root else "the environment variable PRUNUS_DATA"
        raise StoredFileError(
            f"{given} names {folder}, which is not a folder; give the folder that holds cifar10/, mnist/ ..."
        )
    places = (_BESIDE_CHECKOUT, Path.cwd().parent / "shared" / "data")
    for folder in places:
        if folder.is_dir():
            return folder
    raise StoredFileError(
        f"no data folder: set PRUNUS_DATA (or root=) to the folder that holds cifar10/, mnist/ ...; looked in "
        f"{places[0]} and {places[1]}"
    )


def cache_folder() -> Path:
    """Where decoded copies are kept: $PRUNUS_CACHE, else prunus/ in the user's cache folder."""
    named = os.environ.get("PRUNUS_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunus"
