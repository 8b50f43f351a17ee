"""Which files a finetuning learns from and which it is measured on; whole ones, and no copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentvid.core.errors import InputError, UsageError
from latentvid.data.footage import ClipInfo, scan
from latentvid.video.footage import find_videos
from latentvid.video.numbered import clip_bytes, clip_sha256
from latentvid.video.reader import AS_STATED, Reading

HELD_OUT_SHARE = 6
"""Every how many files one is held out where nobody says."""


@dataclass(frozen=True, slots=True)
class Footage:
    """Files to train on, files to measure on, and the others with the reason why they are left out."""

    train: tuple[ClipInfo, ...]
    held_out: tuple[ClipInfo, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def describe(self) -> dict[str, Any]:
        return {
            "train": [_about(clip) for clip in self.train],
            "held_out": [_about(clip) for clip in self.held_out],
            "skipped": [{"file": path.name, "why": why} for path, why in self.skipped],
        }


def find_footage(
    paths: Sequence[str | Path],
    *,
    min_frames: int,
    min_side: int,
    held_out: Sequence[str | Path] = (),
    num_held_out: int | None = None,
    reading: Reading = AS_STATED,
) -> Footage:
    """Look at every file and part the usable ones; whole files are held out, never crops.

    Args:
        paths: files, folders, patterns.
        min_frames: shorter files are skipped.
        min_side: so are files of fewer pixels than this in height or width.
        held_out: the same; without them the last `num_held_out` files of `paths` (about one in six).
        reading: how clips are opened.

    Raises:
        InputError: a path does not exist, or nothing usable is left.
        UsageError: too few files to hold one out, or one that is held out is among `paths`.
    """
    if held_out:
        _check_apart(*(find_videos(named, numbered=reading.fps is not None) for named in (paths, held_out)))
    found, skipped = _usable(paths, min_frames, min_side, reading)
    if held_out:
        kept, unusable = _usable(held_out, min_frames, min_side, reading)
        skipped += unusable
    else:
        count = num_held_out or max(1, round(len(found) / HELD_OUT_SHARE))
        if count >= len(found):
            raise UsageError(
                f"{len(found)} usable clips with {count} held out leave none to train on; give more footage, or "
                "held-out footage with --val."
            )
        found, kept = found[:-count], found[-count:]
    twins = _twins(found, kept)
    skipped += [(clip.path, f"{clip.path}: the same file as {twin}, which is held out.") for clip, twin in twins]
    found = [clip for clip in found if clip not in [c for c, _ in twins]]
    if not found:
        raise InputError(f"no footage is left to train on; the first reason: {skipped[0][1]}")
    return Footage(tuple(found), tuple(kept), tuple(skipped))


def _check_apart(train: Sequence[Path], held_out: Sequence[Path]) -> None:
    both = {path.resolve() for path in train} & {path.resolve() for path in held_out}
    if both:
        raise UsageError(
            f"{min(both)} is both to be trained on and held out (--val); held-out clips must not be trained on."
        )


def _usable(
    paths: Sequence[str | Path], min_frames: int, min_side: int, reading: Reading
) -> tuple[list[ClipInfo], list[tuple[Path, str]]]:
    found, skipped = scan(paths, min_frames=min_frames, reading=reading)
    small = [clip for clip in found if min(clip.height, clip.width) < min_side]
    skipped += [
        (clip.path, f"{clip.path}: {clip.width}x{clip.height} pixels, and crops of {min_side} are wanted.")
        for clip in small
    ]
    found = [clip for clip in found if clip not in small]
    if not found:
        raise InputError(f"none of {len(skipped)} clips can be used. The first: {skipped[0][1]}")
    return found, skipped


def _twins(train: Sequence[ClipInfo], held_out: Sequence[ClipInfo]) -> list[tuple[ClipInfo, Path]]:
    """Return training clips whose bytes are those of a held-out clip, under whatever name."""
    sizes: dict[int, list[Path]] = {}
    for clip in held_out:
        sizes.setdefault(clip_bytes(clip.path), []).append(clip.path)
    return [
        (clip, twin)
        for clip in train
        for twin in sizes.get(clip_bytes(clip.path), [])
        if clip_sha256(clip.path) == clip_sha256(twin)
    ]


def _about(clip: ClipInfo) -> dict[str, Any]:
    return {"file": clip.path.name, "num_frames": clip.num_frames, "height": clip.height, "width": clip.width}
