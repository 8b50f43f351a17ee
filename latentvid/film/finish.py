"""The end of a run: segments joined into the film, its drift drawn, its contact sheet made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch

from latentvid.core.errors import UsageError
from latentvid.core.files import sha256_of
from latentvid.film.folder import SEGMENT_SUFFIXES, RunFolder
from latentvid.film.settings import FilmFacts
from latentvid.metrics.drift import Drift
from latentvid.video.frame import Frame
from latentvid.video.reader import open_video
from latentvid.video.remux import concat_segments
from latentvid.video.sheet import save_contact_sheet
from latentvid.video.writer import VideoWriter

SHEET_FRAMES, SHEET_COLUMNS = 32, 8
SHEET_WIDTH = 160
"""Pixels of a frame on the sheet, about."""


def finish(run: RunFolder) -> dict[str, float]:
    """Join the film, draw its drift and its sheet, and note its hash; return the drift's summary.

    Raises:
        UsageError: another file took the film's place in the meantime.
    """
    joined = run.path / f"film{run.film.suffix}"
    join(run, joined)
    publish(run, joined)
    drift = write_drift(run)
    write_sheet(run)
    return drift


def join(run: RunFolder, target: Path) -> None:
    """Write the film of all segments to `target`."""
    segments = [run.segment(k) for k in range(run.record.num_windows) if run.segment(k).is_file()]
    if target.suffix.lower() in SEGMENT_SUFFIXES:
        concat_segments(segments, target)
        return
    settings = run.settings
    with VideoWriter(
        target, fps=Fraction(settings.fps), width=settings.width, height=settings.height, overwrite=True
    ) as writer:
        for segment in segments:
            for frame in _frames(segment):
                writer.write(frame.pixels[None])


def publish(run: RunFolder, joined: Path) -> None:
    """Put a joined film into its place, and note its hash."""
    digest = sha256_of(joined)
    film, known = run.film, run.record.film
    if film.exists() and not run.settings.overwrite:
        there = sha256_of(film)
        if there != digest and (known is None or there != known.sha256):
            raise UsageError(f"{film} exists and is no film of this run; move it away, then resume {run.path}.")
    os.replace(joined, film)
    run.record = run.record.model_copy(update={"film": FilmFacts(sha256=digest, num_frames=run.num_shown())})
    run.save()


def write_drift(run: RunFolder) -> dict[str, float]:
    """Write drift.json and drift.png from the windows' curves; return the summary."""
    windows = [run.window(k) for k in range(run.record.num_windows)]
    follows_clip = run.settings.clip is not None  # whose last frame is measured with the first window
    first = windows[0].first_frame - int(follows_clip)
    drift = Drift(joins=[w.first_frame - first for w in windows[0 if follows_clip else 1 :]])
    for window in windows:
        drift.add_curves(window.curves)
    drift.write_json(run.path / "drift.json")
    drift.write_png(run.path / "drift.png", title=f"Drift of {run.film.name}")
    return drift.compute()


def write_sheet(run: RunFolder) -> None:
    """Write the contact sheet that was asked for: evenly spaced frames of the finished film."""
    if run.settings.contact_sheet is None:
        return
    frames, labels = evenly_spaced(run.film, SHEET_FRAMES)
    scale = SHEET_WIDTH / frames.shape[-1]
    scale = max(1, round(scale)) if scale > 1 else scale
    target = Path(run.settings.contact_sheet)
    save_contact_sheet(target, frames, SHEET_COLUMNS, scale, labels=labels, overwrite=True)


def evenly_spaced(clip: Path, count: int) -> tuple[torch.Tensor, list[int]]:
    """Return up to `count` frames of a clip, uint8 [n 3 h w], from its first to its last, and their numbers."""
    with open_video(clip) as reader:
        total = reader.meta.num_frames
        if reader.meta.num_frames_source != "counted" or clip.suffix.lower() == ".gif":
            total = sum(1 for _ in reader.frames())
        wanted = sorted({round(k * (total - 1) / max(1, count - 1)) for k in range(count)})
        frames = [frame.pixels for k in wanted for frame in reader.frames(k, k + 1)]
    return torch.stack(frames), wanted


def discard(run: RunFolder) -> None:
    """Remove the run folder of a finished film."""
    shutil.rmtree(run.path)


def _frames(path: Path) -> Iterator[Frame]:
    with open_video(path) as reader:
        yield from reader.frames()
