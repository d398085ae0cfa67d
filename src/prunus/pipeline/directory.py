"""The run directory: made and checked before any work, written atomically, one run at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, StoredFileError

logger = logging.getLogger("prunus.run")


class RunDirectory:
    """A folder that describes one run: recipe, environment, report, log, and the files of every step.

    Args:
        path: made when absent, with its parents.

    Raises:
        InputError: it cannot be made or written; nothing was done yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".write-test-"):
                pass
        except OSError as error:
            raise InputError(
                f"run directory {str(self.path)!r} cannot be written ({error.strerror or error}): "
                "choose another one (--out, or run_dir=)"
            ) from None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_json(self, name: str, content: Any) -> Path:
        """Write plain data; NaN and infinities become null."""
        return self.write_text(name, json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in one step: readers see the old one or the new one."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp keeps files to their owner
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return target

    def read_json(self, name: str) -> Any:
        """Plain data, or None when the file is absent.

        Raises:
            StoredFileError: the file is there and is not JSON.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise StoredFileError(
                f"{str(self.path / name)!r} is damaged ({error}): delete it to start afresh"
            ) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; the lock goes when the process does, however it ends.

        Raises:
            InputError: another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        with open(self.path / ".lock", "w", encoding="utf8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"run directory {str(self.path)!r} is in use by another run: wait for it, "
                    "or choose another one (--out)"
                ) from None
            except OSError:  # a file system without locks: better no lock than no run
                pass
            yield

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Everything that `prunus` loggers say also goes to run.log, with the time."""
        handler = logging.FileHandler(self.path / "run.log", encoding="utf8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root = logging.getLogger("prunus")
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            handler.close()


def plain(value: Any) -> Any:
    """Plain JSON data: mappings with string keys, lists, numbers; what is not finite becomes None.

    >>> plain({1: (float("nan"), Path("a"))})
    {'1': [None, 'a']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # zero-dimensional tensors and numpy scalars
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def digest(content: Any) -> str:
    """SHA-256 of plain data in canonical form: the same for equal data, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file; of a directory, of the names and digests of all its files."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest([(str(p.relative_to(path)), file_digest(p)) for p in files])
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()
