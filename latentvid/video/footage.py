"""Finding the videos that a user means by folders, patterns and file names."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from latentvid.core.errors import InputError

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg",
    ".m2v", ".3gp", ".3g2", ".ogv", ".mxf", ".nut", ".gif", ".apng", ".y4m", ".h264", ".264", ".hevc", ".265", ".ivf",
    ".vob", ".dv",
})  # fmt: skip
STILL_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])


def find_videos(paths: Iterable[str | Path], *, stills: bool = False) -> list[Path]:
    """Return the files that `paths` name: files as given, folders searched with all below them, patterns expanded.

    Folders and patterns yield files of known suffixes only (`stills` adds pictures), hidden ones left out, sorted by
    name; a file named outright is taken whatever it is called. Each file appears once, at its first mention.

    Raises:
        InputError: a path does not exist, a pattern or folder holds nothing, or nothing was named.
    """
    suffixes = VIDEO_SUFFIXES | STILL_SUFFIXES if stills else VIDEO_SUFFIXES
    found: dict[Path, Path] = {}
    for path in paths:
        for file in _expand(Path(path), suffixes):
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no videos were named.")
    return list(found.values())


def _expand(path: Path, suffixes: frozenset[str]) -> list[Path]:
    if path.is_dir():
        files = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
    elif path.exists():
        return [path]
    elif glob.has_magic(str(path)):
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
    else:
        raise InputError(f"{path}: no such file or folder.")
    known = sorted(file for file in files if file.suffix.lower() in suffixes and file.is_file())
    if not known:
        raise InputError(f"{path}: holds no videos (looked for {', '.join(sorted(suffixes)[:6])} and so on).")
    return known


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
