"""Folders that are written whole or not at all, checksums, and files that are never opened."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError, StoredFileError

PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".th", ".tar"})
"""Endings of files that may be pickles."""

_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""First bytes of pickles, and of the zip files that torch.save puts them in."""

CONVERT = (
    "pickles can run any code when opened. Convert it once, where you trust it: "
    "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
)


def check_writable(directory: str | Path) -> Path:
    """The directory as a path, after making sure that files can be written there, or that it can be made.

    Raises:
        InputError: it cannot be written; says why. To be called before any long work starts.
    """
    path = Path(directory).expanduser().absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file")
        with tempfile.NamedTemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {str(path)!r}: {error}; give a folder that can be written") from error
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_folder(target: Path, contents: Path) -> None:
    """Put the folder `contents` (on the same disk) in the place of `target`, keeping files of others in there.

    At no time is there a half-written folder at `target`.
    """
    for file in contents.iterdir():
        _sync(file)
    _sync(contents)
    if not target.exists():
        os.rename(contents, target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        os.rename(target, old)
        try:
            os.rename(contents, target)
        except OSError:
            os.rename(old, target)
            raise
        for other in old.iterdir():
            if not (target / other.name).exists():
                os.rename(other, target / other.name)
        shutil.rmtree(old)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, on the CPU.

    Raises:
        StoredFileError: the file is missing, a pickle, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    refuse_pickle(path)
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise StoredFileError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise StoredFileError(f"{path} is no readable safetensors file, or is cut short: {error}") from error


def refuse_pickle(path: Path) -> None:
    """Raise if the file is a pickle, by its name or its first bytes. Nothing is read beyond those."""
    if path.suffix.lower() in PICKLES:
        raise StoredFileError(f"{path} is not opened: {CONVERT}")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4).startswith(_PICKLE_STARTS):
                raise StoredFileError(f"{path} is a pickle, whatever its name says, and is not opened: {CONVERT}")


def check_file(path: Path, expected: Mapping[str, object]) -> None:
    """Compare a file with the size and hash that were noted when it was written.

    Raises:
        StoredFileError: names the file and both hashes.
    """
    if not path.is_file():
        raise StoredFileError(f"{path} is missing; the folder was not copied whole")
    found = sha256(path)
    if found != expected.get("sha256"):
        size, was = path.stat().st_size, expected.get("bytes")
        cut = f"; it is cut short: {size} of {was} bytes" if isinstance(was, int) and size < was else ""
        raise StoredFileError(
            f"{path} was changed after it was saved: its sha256 is {found}, the manifest says "
            f"{expected.get('sha256')}{cut}. Restore it from a copy or save it again"
        )
