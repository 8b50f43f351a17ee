"""Files that others wrote, read within bounds: regular files only, of no more bytes and depth than make sense."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentvid.core.errors import InputError

LARGEST_JSON = 64 << 20
DEEPEST = 64
"""Levels of lists and tables within each other; what is deeper is no data of ours or of the libraries."""
_LONGEST_NUMBER = 64
_POINTER = b"version https://git-lfs"
# Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))


@contextmanager
def opened(path: str | Path, *, follow_links: bool = True) -> Iterator[int]:
    """Yield a descriptor of a regular file, open for reading.

    Raises:
        InputError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    handle = open_regular(path, follow_links=follow_links)
    try:
        yield handle
    finally:
        os.close(handle)


def open_regular(path: str | Path, *, follow_links: bool = True) -> int:
    """Return a descriptor of a regular file, open for reading; the caller closes it.

    Raises:
        InputError: as for `opened`.
    """
    try:
        return open_plain(path, follow_links=follow_links)
    except FileNotFoundError:
        raise InputError(f"{path}: cannot be read (no such file).") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: cannot be read ({reason(error)}).") from error


def open_plain(path: str | Path, *, follow_links: bool = True) -> int:
    """Like `open_regular`, with the system's own errors.

    Raises:
        OSError: the file is missing, no regular file, or (without `follow_links`) a link.
        ValueError: its name holds a zero byte.
    """
    handle = os.open(path, _FLAGS if follow_links else _FLAGS | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return handle


def read_bytes(path: str | Path, *, max_bytes: int, follow_links: bool = True) -> bytes:
    """Return all of a file.

    Raises:
        InputError: as for `opened`, or it is larger than `max_bytes`, or only a pointer to a file.
    """
    with opened(path, follow_links=follow_links) as handle:
        data = b"" if os.fstat(handle).st_size > max_bytes else _read(handle, max_bytes + 1, path)
        if os.fstat(handle).st_size > max_bytes or len(data) > max_bytes:
            raise InputError(f"{path} is larger than {_size(max_bytes)}; that is none of the kind that is read here.")
    check_no_pointer(data, path)
    return data


def read_start(path: str | Path, num_bytes: int) -> bytes:
    """Return at most so many bytes of a file, from its first on.

    Raises:
        InputError: as for `opened`.
    """
    with opened(path) as handle:
        return _read(handle, num_bytes, path)


def read_text(path: str | Path, *, max_bytes: int, follow_links: bool = True) -> str:
    """Return a file of UTF-8 text, without a mark of the byte order.

    Raises:
        InputError: as for `read_bytes`, or it is no UTF-8.
    """
    try:
        return read_bytes(path, max_bytes=max_bytes, follow_links=follow_links).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text.") from None


def read_json(
    path: str | Path, *, max_bytes: int = LARGEST_JSON, finite: bool = False, follow_links: bool = True
) -> Any:
    """Read a JSON file of bounded size and depth.

    Args:
        finite: refuse NaN and infinities, which are no JSON.
        follow_links: read what a link leads to.

    Raises:
        InputError: it is missing, no regular file, too large, or not JSON.
    """
    try:
        return parse_json(read_text(path, max_bytes=max_bytes, follow_links=follow_links), finite=finite)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error


def parse_json(
    text: str | bytes, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, finite: bool = False
) -> Any:
    """Return JSON as plain data.

    Args:
        pairs: makes the tables, from their keys and values in order.
        finite: refuse NaN and infinities, which are no JSON.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds a number of too many digits.
    """
    try:
        data = json.loads(
            text,
            parse_int=_whole_number,
            object_pairs_hook=pairs,
            parse_constant=_refuse_constant if finite else None,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _is_deeper(data, DEEPEST):
        raise ValueError("nested too deeply")
    return data


def read_at(handle: int, num_bytes: int, place: int) -> bytes:
    """Return at most so many bytes of an open file, from a place on; fewer where the file ends."""
    if hasattr(os, "pread"):
        return os.pread(handle, num_bytes, place)
    os.lseek(handle, place, os.SEEK_SET)
    return os.read(handle, num_bytes)


def check_no_pointer(start: bytes, path: str | Path) -> None:
    """Refuse what git left in a file's place.

    Raises:
        InputError: the file begins as a git-lfs pointer does.
    """
    if start.startswith(_POINTER):
        raise InputError(f"{path} is a git-lfs pointer, not the file itself; fetch that with `git lfs pull`.")


def reason(error: BaseException) -> str:
    """Return why a file could not be opened, in words."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


def _read(handle: int, num_bytes: int, path: str | Path) -> bytes:
    blocks, left = [], num_bytes
    try:
        while left > 0 and (block := os.read(handle, min(left, 1 << 20))):
            blocks.append(block)
            left -= len(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}).") from error
    return b"".join(blocks)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _is_deeper(data: Any, levels: int) -> bool:
    here = [data]
    for _ in range(levels + 1):
        inside = [(v.values() if isinstance(v, dict) else v) for v in here if isinstance(v, dict | list) and v]
        if not inside:
            return False
        here = [value for values in inside for value in values]
    return True


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"
