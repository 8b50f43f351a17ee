"""Files that are either whole or absent: written beside, synced, renamed; and named by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks; what a killed process leaves is not told from what a living one writes
    fcntl = None  # type: ignore[assignment]

from latentvid.core.errors import ResourceError, UsageError
from latentvid.core.reading import read_json as read_json

LOCK = ".lock"


@contextmanager
def atomic_path(target: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target`; sync it and rename it into place when the block succeeds.

    On any failure (a kill included) `target` is left as it was. The temporary file keeps the suffix of
    `target`, since writers choose formats by it; one that a killed process left is removed by the next who writes
    the same target.

    Raises:
        UsageError: `target` exists and `overwrite` is false, or its folder cannot be made.
        ResourceError: the disk is full.
    """
    target = Path(target)
    check_output(target, overwrite=overwrite)
    handle, beside = _open_beside(target)
    try:
        with resource_errors(target):
            yield beside
            _sync(beside)
            mask = os.umask(0)
            os.umask(mask)
            beside.chmod(0o666 & ~mask)
            os.replace(beside, target)
            _sync_folder(target.parent)
    except BaseException:
        beside.unlink(missing_ok=True)  # not after the rename: the name may be another writer's by then
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _open_beside(target: Path) -> tuple[int | None, Path]:
    """Make an empty file beside `target`; while the handle is open, nobody else takes it for a leftover.

    The name is always the same, so that what a killed process left is found and used again; where a living one holds
    it, the name is one of chance.
    """
    start = _beginning(target.stem)
    usual = target.parent / f".{start}.{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}{target.suffix}"
    handle = _open_locked(usual)
    if handle is not None:
        return handle, usual
    with resource_errors(target):
        other, name = tempfile.mkstemp(dir=target.parent, prefix=f".{start}.", suffix=target.suffix)
    os.close(other)
    return None, Path(name)


def _beginning(name: str) -> str:
    """Return up to 40 characters of a name, and so few bytes that a longer name can be made of them."""
    start = name[:40]
    while len(os.fsencode(start)) > 80:
        start = start[:-1]
    return start


def _open_locked(path: Path) -> int | None:
    """Open a file, emptied and locked for this writer; None where that cannot be, or another holds it."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):  # else its writer renamed it before the lock
            os.truncate(handle, 0)
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a run's folder while the block runs.

    A killed process leaves a file named `LOCK` there and no lock.

    Raises:
        ResourceError: another one is in it.
    """
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(f"{folder}: another process is working on this run; wait for it.") from error
        yield


@contextmanager
def resource_errors(target: Path) -> Iterator[None]:
    """Turn a full or read-only disk into the sentence and exit code that users get."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"{target}: the disk is full; nothing was overwritten. Free space and repeat."
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{target}: the name is too long for this file system; name it otherwise.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UsageError(f"{target}: cannot be written ({error.strerror}).") from error
        raise


def check_output(target: str | Path, *, overwrite: bool) -> None:
    """Refuse an output that exists (unless `overwrite`) or that is a folder; make its parent folders."""
    target = Path(target)
    if "\0" in str(target):
        raise UsageError(f"{target}: a file's name cannot hold a zero byte.")
    with resource_errors(target):
        if target.is_dir():
            raise UsageError(f"{target} is a folder; name a file.")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} exists; pass --overwrite to replace it.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{target.parent} is a file, not a folder.") from error


def write_json(target: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically."""
    with atomic_path(target) as beside:
        text = json.dumps(data, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no UTF-8, as JSON escapes


def sha256_of(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def safe_name(text: str) -> str:
    """Return `text` as a file name without separators or surprises.

    >>> safe_name("clouds / dusk: 3")
    'clouds-dusk-3'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "unnamed"


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
