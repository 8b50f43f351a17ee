"""Files that are either whole or absent: written beside, synced, renamed; and named by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Protocol

try:
    import fcntl
except ImportError:  # Windows: no locks; what a killed process leaves is not told from what a living one writes
    fcntl = None  # type: ignore[assignment]

from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError, UsageError
from latentvid.core.reading import open_plain
from latentvid.core.reading import read_json as read_json

LOCK = ".lock"
_NO_SURPRISE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags of `os.open`: through no link, and without waiting for a pipe."""
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What disks without hard links answer."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EROFS, errno.EPERM)


class Guard(Protocol):
    """Watches over a folder: hears of every file that is to be written below it, see `guarded`."""

    @property
    def path(self) -> Path: ...

    def admit(self, target: Path) -> None:
        """Refuse a target that must not be written, by raising."""

    def record(self, target: Path, beside: Path) -> None:
        """Hear of a whole file just before it is moved to `target`; raising keeps it from there."""


_GUARDS: ContextVar[tuple[Guard, ...]] = ContextVar("guards", default=())


@contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """Let `guard` see, while the block runs, all that `atomic_path` writes below its folder."""
    token = _GUARDS.set((*_GUARDS.get(), guard))
    try:
        yield
    finally:
        _GUARDS.reset(token)


def _guard_of(target: Path) -> Guard | None:
    """Return the guard of the innermost folder around a target."""
    parents = Path(os.path.abspath(target)).parents
    around = [guard for guard in _GUARDS.get() if Path(os.path.abspath(guard.path)) in parents]
    return max(around, key=lambda guard: len(os.path.abspath(guard.path)), default=None)


@contextmanager
def atomic_path(target: str | Path, *, overwrite: bool | None = True) -> Iterator[Path]:
    """Yield a temporary path beside `target`; sync it and move it into place when the block succeeds.

    On any failure (a kill included) `target` is left as it was. The temporary file keeps the suffix of
    `target`, since writers choose formats by it; one that a killed process left is removed by the next who writes
    the same target.

    Args:
        overwrite: whether to replace what is there; None is no, and lets the block, not the start, be where the target
            must not be there any more.

    Raises:
        UsageError: `target` exists, or exists by the time that it is whole, and `overwrite` is false; another process
            is writing it; or its folder cannot be made.
        ResourceError: the disk is full.
    """
    target = Path(target)
    guard = _guard_of(target)
    if guard is not None:
        guard.admit(target)
    check_output(target, overwrite=overwrite is not False)
    handle, beside = _open_beside(target)
    try:
        with resource_errors(target):
            yield beside
            sync(beside)
            mask = os.umask(0)
            os.umask(mask)
            beside.chmod(0o666 & ~mask)
            if guard is not None:
                guard.record(target, beside)
            put_in_place(beside, target, overwrite=bool(overwrite))
    except BaseException:
        beside.unlink(missing_ok=True)  # not after the move: the name may be another writer's by then
        raise
    finally:
        if handle is not None:
            os.close(handle)


def put_in_place(beside: Path, target: Path, *, overwrite: bool) -> None:
    """Move a whole file to its place on the same disk.

    Raises:
        UsageError: something lies there and `overwrite` is false; it is left alone, and `beside` is still there.
    """
    if overwrite:
        os.replace(beside, target)
    else:
        try:
            _move_to_new(beside, target)
        except FileExistsError as error:
            raise UsageError(
                f"{target} exists by now: another file was put there meanwhile, and was left as it is. "
                "Name another output, or pass --overwrite."
            ) from error
    _sync_folder(target.parent)


def _move_to_new(beside: Path, target: Path) -> None:
    """Rename without replacing anything; raise FileExistsError instead."""
    if os.name == "nt":
        os.rename(beside, target)
        return
    try:
        os.link(beside, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # takes the name
        os.replace(beside, target)
    else:
        os.unlink(beside)


def beside_name(name: str) -> str:
    """Return the name of the hidden file in which a file of that name is written before it is whole."""
    path = Path(name)
    return f".{_beginning(path.stem)}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{path.suffix}"


def _open_beside(target: Path) -> tuple[int | None, Path]:
    """Make an empty file beside `target`; while the handle is open, nobody else takes it for a leftover.

    The name is always the same, so that what a killed process left is found and used again. Where it cannot be used,
    the name is one of chance.

    Raises:
        UsageError: a living process holds it.
    """
    usual = target.parent / beside_name(target.name)
    handle = _open_locked(usual, target)
    if handle is not None:
        return handle, usual
    with resource_errors(target):
        other, name = tempfile.mkstemp(dir=target.parent, prefix=f".{_beginning(target.stem)}.", suffix=target.suffix)
    os.close(other)
    return None, Path(name)


def _beginning(name: str) -> str:
    """Return up to 40 characters of a name, and so few bytes that a longer name can be made of them."""
    start = name[:40]
    while len(os.fsencode(start)) > 80:
        start = start[:-1]
    return start


def _open_locked(path: Path, target: Path) -> int | None:
    """Open a file, emptied and locked for this writer; None where that cannot be."""
    if fcntl is None:
        return None
    for _ in range(8):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_SURPRISE, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened, there = os.fstat(handle), os.lstat(path)
            if not os.path.samestat(opened, there):  # its writer renamed it before the lock
                os.close(handle)
                continue
            if opened.st_nlink > 1 and target.exists() and os.path.samestat(opened, os.lstat(target)):
                os.unlink(path)  # its writer was killed when the target was whole already
                os.close(handle)
                continue
            if stat.S_ISREG(opened.st_mode) and opened.st_nlink == 1:  # a second name would be somebody's file
                os.truncate(handle, 0)
                return handle
        except BlockingIOError:
            os.close(handle)
            raise UsageError(f"{target}: another process is writing it; wait for it, or name another output.") from None
        except OSError:
            pass
        os.close(handle)
        return None
    return None


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Keep other processes that ask for the same out of a run's folder while the block runs.

    Yields a handle of its file named `LOCK`, open for reading and appending; None where there are no locks. A killed
    process leaves the file there and no lock.

    Raises:
        ResourceError: another one is in it.
        CheckpointError: that file is a link, or no file.
        UsageError: the folder cannot be written.
    """
    if fcntl is None:
        yield None
        return
    with resource_errors(folder):
        handle = _take_lock(folder)
    try:
        yield handle
    finally:
        os.close(handle)


def _take_lock(folder: Path) -> int:
    path = folder / LOCK
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_SURPRISE, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise CheckpointError(f"{path} is a link, or no file; remove it.") from error
            if error.errno == errno.ENOENT:
                raise ResourceError(f"{folder} is gone; another process may have removed it.") from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError(f"{path} is no file; remove it.")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResourceError(f"{folder}: another process is working on this run; wait for it.") from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            opened = os.fstat(handle)
            try:
                is_same = os.path.samestat(opened, os.lstat(path))
            except FileNotFoundError:  # whoever held it removed the folder
                is_same = False
            if is_same and opened.st_nlink > 1:
                _unshare(handle, path)  # what is appended must not reach another name's file
            elif is_same:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _unshare(handle: int, path: Path) -> None:
    """Put a copy of an open file in its place, so that its other names keep theirs."""
    other, name = tempfile.mkstemp(dir=path.parent, prefix=".lock.")
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        while block := os.read(handle, 1 << 20):
            os.write(other, block)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(other)


@contextmanager
def resource_errors(target: Path) -> Iterator[None]:
    """Turn a full or read-only disk into the sentence and exit code that users get, whichever library met it."""
    try:
        yield
    except LatentVidError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number in _FULL:
            raise ResourceError(
                f"{target}: the disk is full; nothing was overwritten. Free space and repeat."
            ) from error
        if number == errno.ENAMETOOLONG:
            raise UsageError(f"{target}: the name is too long for this file system; name it otherwise.") from error
        if number in _CLOSED:
            raise UsageError(f"{target}: cannot be written ({os.strerror(number)}).") from error
        raise


def _errno_of(error: BaseException) -> int:
    """Return the number of the system's error behind an exception; 0 for none.

    safetensors has it in its text only, and PyTorch's writer has its own error in front of the system's.
    """
    seen: BaseException | None = error
    for _ in range(5):
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        if seen is not None:
            found = re.search(r"\(os error (\d+)\)", str(seen))
            if found:
                return int(found[1])
            seen = seen.__cause__ or seen.__context__
    return errno.ENOSPC if re.search("PytorchStreamWriter failed|iostream error|unexpected pos", str(error)) else 0


def check_output(target: str | Path, *, overwrite: bool) -> None:
    """Refuse an output that exists (unless `overwrite`) or that is a folder; make its parent folders."""
    target = Path(target)
    if "\0" in str(target):
        raise UsageError(f"{target}: a file's name cannot hold a zero byte.")
    with resource_errors(target):
        if target.is_dir():
            raise UsageError(f"{target} is a folder; name a file.")
        if os.path.lexists(target) and not overwrite:
            raise UsageError(f"{target} exists; pass --overwrite to replace it.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{target.parent} is a file, not a folder.") from error


def write_json(target: str | Path, data: Any, *, overwrite: bool = True) -> None:
    """Write `data` as indented JSON, atomically."""
    with atomic_path(target, overwrite=overwrite) as beside:
        text = json.dumps(data, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no UTF-8, as JSON escapes


def open_regular(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a file for reading, never waiting for a pipe or a device.

    Raises:
        OSError: it is missing, no regular file, or (without `follow_links`) a link.
    """
    return os.fdopen(open_plain(path, follow_links=follow_links), "rb")


def sha256_of(path: str | Path, *, follow_links: bool = True) -> str:
    """Return the hex SHA-256 of a regular file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path, follow_links=follow_links) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def safe_name(text: str) -> str:
    """Return `text` as a file name without separators or surprises.

    >>> safe_name("clouds / dusk: 3")
    'clouds-dusk-3'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "unnamed"


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # of folders, Windows opens none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
