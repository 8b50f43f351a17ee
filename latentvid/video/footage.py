"""Finding the videos that a user means by folders, patterns and file names, and sharing them out by name."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path

from latentvid.core.errors import InputError, UsageError
from latentvid.video.numbered import STILL_SUFFIXES, numbered_pictures

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg",
    ".m2v", ".3gp", ".3g2", ".ogv", ".mxf", ".nut", ".gif", ".apng", ".y4m", ".h264", ".264", ".hevc", ".265", ".ivf",
    ".vob", ".dv",
})  # fmt: skip
__all__ = ["STILL_SUFFIXES", "VIDEO_SUFFIXES", "find_named", "find_videos", "shard_of"]


def find_videos(paths: Iterable[str | Path], *, stills: bool = False, numbered: bool = False) -> list[Path]:
    """Return the files that `paths` name: files as given, folders searched with all below them, patterns expanded.

    Folders and patterns yield files of known suffixes only (`stills` adds pictures), hidden ones left out, sorted by
    name; a file named outright is taken whatever it is called. Each file appears once, at its first mention.

    Args:
        stills: pictures of folders too.
        numbered: folders of numbered pictures are clips, and stand for these.

    Raises:
        InputError: a path does not exist, a pattern or folder holds nothing, or nothing was named.
        UsageError: a folder holds numbered pictures only, and neither `stills` nor `numbered` is asked for.
    """
    return [file for file, _ in find_named(paths, stills=stills, numbered=numbered)]


def find_named(paths: Iterable[str | Path], *, stills: bool = False, numbered: bool = False) -> list[tuple[Path, str]]:
    """Return the files of `find_videos`, each with its name as seen from the folder that was searched ("sub/a.mp4")."""
    suffixes = VIDEO_SUFFIXES | STILL_SUFFIXES if stills else VIDEO_SUFFIXES
    found: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        for file, name in _expand(Path(path), suffixes, numbered=numbered):
            found.setdefault(file.resolve(), (file, name))
    if not found:
        raise InputError("no videos were named.")
    return list(found.values())


def shard_of(name: str, num_shards: int) -> int:
    """Return which of `num_shards` shares, from 1, a file of this name falls to, whatever other files there are."""
    return 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % num_shards


def _expand(path: Path, suffixes: frozenset[str], *, numbered: bool) -> list[tuple[Path, str]]:
    """Return the clips that a path names, each with its name as seen from the folder that was searched."""
    is_one = numbered_pictures(path) is not None
    if path.is_dir() and is_one and (numbered or not suffixes & STILL_SUFFIXES):
        if not numbered:
            raise _without_rate(path)
        return [(path, path.resolve().name)]
    if path.is_dir():
        base = path
        files = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
    elif path.exists() or is_one:
        return [(path, path.name)]
    elif glob.has_magic(str(path)):
        base = _fixed_part(path)
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
    else:
        raise InputError(f"{path}: no such file or folder.")
    folders = _numbered(files) if numbered else set()
    known = [f for f in files if f.suffix.lower() in suffixes and f.is_file() and f.parent not in folders]
    if not known and not folders:
        if not numbered and (found := _numbered(files)):
            raise _without_rate(min(found))
        raise InputError(f"{path}: holds no videos (looked for {', '.join(sorted(suffixes)[:6])} and so on).")
    return [(file, file.relative_to(base).as_posix()) for file in sorted([*known, *folders])]


def _numbered(files: Iterable[Path]) -> set[Path]:
    return {file for file in files if file.is_dir() and numbered_pictures(file) is not None}


def _without_rate(folder: Path) -> UsageError:
    return UsageError(
        f"{folder}: its numbered pictures are a clip at a rate that they do not state; give it (--fps 25)."
    )


def _fixed_part(pattern: Path) -> Path:
    """Return the folder that all matches of a pattern lie in."""
    fixed = [part for part in pattern.parents if not glob.has_magic(str(part))]
    return fixed[0]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
