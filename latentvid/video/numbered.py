"""Numbered pictures that are one clip: a folder that holds nothing else, or a pattern such as "frame_%04d.png"."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from latentvid.core.errors import InputError
from latentvid.core.files import sha256_of

STILL_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
_NUMBER = re.compile(r"\d+(?=\D*$)")
_PLACE = re.compile(r"%(?:0(\d+))?d")


@dataclass(frozen=True, slots=True)
class Numbered:
    """Pictures whose names differ in one number, in the order of that."""

    paths: tuple[Path, ...]
    num_missing: int
    """Numbers between the first and the last that no picture has."""


def numbered_pictures(path: Path) -> Numbered | None:
    """Return the pictures that a folder or a pattern names; None for anything else.

    A folder must hold nothing else, hidden files apart. A file of that very name is no pattern.

    Raises:
        InputError: a pattern that no picture fits, or two pictures of one number.
    """
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.exists() or not is_pattern(path):
            return None
        return _of_pattern(path)
    except (OSError, ValueError):
        return None


def is_pattern(path: Path) -> bool:
    """Whether a name has a place for one number, as "frame_%04d.png" has."""
    return len(_PLACE.findall(path.name.replace("%%", ""))) == 1


def clip_exists(path: Path) -> bool:
    """Whether a file, or a folder or pattern of numbered pictures, is there."""
    return path.is_file() or numbered_pictures(path) is not None


def clip_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of numbered pictures, that of their names and contents."""
    numbered = numbered_pictures(path)
    if numbered is None:
        found = path.stat()
        return _sha256_once(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    digest = hashlib.sha256()
    for picture in numbered.paths:
        digest.update(f"{picture.name}\0{sha256_of(picture)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _sha256_once(path: Path, state: tuple[int, ...]) -> str:
    """Return a file's SHA-256; `state` changes with any change to it, so that hours of film are read once."""
    return sha256_of(path)


def clip_bytes(path: Path) -> int:
    """Return the size of a file, or of all numbered pictures together."""
    numbered = numbered_pictures(path)
    return sum(file.stat().st_size for file in ([path] if numbered is None else numbered.paths))


def _of_folder(folder: Path) -> Numbered | None:
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    found: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for file in files:
        match = _NUMBER.search(file.stem)
        if file.suffix.lower() not in STILL_SUFFIXES or match is None or not file.is_file():
            return None
        around = (file.stem[: match.start()], file.stem[match.end() :] + file.suffix.lower())
        found.setdefault(around, []).append((int(match.group()), file))
    return _in_order(folder, next(iter(found.values()))) if len(found) == 1 else None


def _of_pattern(path: Path) -> Numbered:
    front, width, back = _PLACE.split(path.name.replace("%%", "\0"))
    digits = rf"(\d{{{int(width)},}})" if width else r"(\d+)"
    name = re.compile(re.escape(front.replace("\0", "%")) + digits + re.escape(back.replace("\0", "%")))
    matches = [(name.fullmatch(file.name), file) for file in path.parent.iterdir()] if path.parent.is_dir() else []
    found = [(int(match.group(1)), file) for match, file in matches if match and file.is_file()]
    if not found:
        raise InputError(f"{path}: no such file, and no picture of such a name with a number.")
    return _in_order(path, found)


def _in_order(path: Path, found: list[tuple[int, Path]]) -> Numbered:
    ordered = sorted(found)
    numbers = [number for number, _ in ordered]
    for (number, one), (after, other) in pairwise(ordered):
        if number == after:
            raise InputError(f"{path}: {one.name} and {other.name} have the same number; take one away.")
    return Numbered(tuple(file for _, file in ordered), numbers[-1] - numbers[0] + 1 - len(numbers))
