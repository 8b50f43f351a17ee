"""The end of a run: segments joined into the film, its drift drawn, its contact sheet made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import atomic_path, sha256_of
from latentvid.film.assembly import Assembly, frames_note
from latentvid.film.folder import SEGMENT_SUFFIXES, SHEET, RunFolder, deliver
from latentvid.film.joins import join_of
from latentvid.film.settings import FilmFacts, FilmSettings, clip_of
from latentvid.film.timing import SAME_RATE
from latentvid.metrics.drift import Drift
from latentvid.video.append import NotAppendable
from latentvid.video.frame import Frame
from latentvid.video.reader import open_video
from latentvid.video.remux import concat_segments
from latentvid.video.sheet import save_contact_sheet
from latentvid.video.writer import VideoWriter

SHEET_FRAMES, SHEET_COLUMNS = 32, 8
SHEET_WIDTH = 160
"""Pixels of a frame on the sheet, about."""


def finish(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Join the film, draw its drift and its sheet, and note its hash; return the drift's summary, and notes.

    Raises:
        UsageError: another file took the film's place in the meantime.
    """
    joined = run.files.file(f"film{run.film.suffix}")
    join(run, joined)
    publish(run, joined)
    drift, notes = write_drift(run)
    return drift, [*notes, *write_sheet(run)]


def finish_extension(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Join the clip and the new frames, and return the drift's summary and what the user should know."""
    joined = run.files.file(f"film{run.film.suffix}")
    segments = [run.segment(k) for k in range(run.record.num_windows) if run.segment(k).is_file()]
    try:
        assembly = Assembly.of(run)
        assembly.join(segments, joined)
    except NotAppendable as error:  # which it could be when the run was begun
        raise CheckpointError(f"{run.film}: cannot be joined to the clip, because {error}; was it changed?") from error
    if assembly.kept_frames(joined, segments) is None:
        raise CheckpointError(f"{run.film}: the clip's own frames did not survive the joining; nothing was written.")
    publish(run, joined)
    run.files.remove(assembly.source.name)
    drift, notes = write_drift(run)
    notes += write_sheet(run)
    join = join_of(run.film, clip_of(run.settings).num_frames)
    return {**drift, **join.to_dict()}, [*notes_of(run.settings), join.in_words(), *notes]


def notes_of(settings: FilmSettings) -> list[str]:
    """Return what was done to the clip, a sentence each."""
    clip = clip_of(settings)
    notes = [frames_note(settings), *clip.notes]
    if clip.own is not None:
        notes.append(f"it goes on from the latents in {clip.own.run}, not from encoded frames.")
    if (clip.height, clip.width) != (settings.height, settings.width):
        notes.append(
            f"the model worked at {settings.width}x{settings.height}; "
            f"its frames were resized to the clip's {clip.width}x{clip.height}."
        )
    rates = float(Fraction(settings.model_fps)), float(Fraction(clip.fps))
    if clip.is_retimed:
        how = "mixed of neighbours" if clip.retime == "blend" else "repeated or left out"
        notes.append(
            f"the model works at {rates[0]:g} frames per second and the clip is at {rates[1]:g}: its frames are {how} "
            "to keep the clip's rate."
        )
    elif abs(rates[1] / rates[0] - 1) > SAME_RATE:
        notes.append(f"each frame of the model, made for {rates[0]:g} per second, is one of the clip's {rates[1]:g}.")
    return notes


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
    """Put a joined film into its place, and note its hash.

    Raises:
        UsageError: another file lies there, and this call has no leave to replace it.
    """
    known = run.record.film
    is_ours = known is not None and run.is_beside_its_film
    digest = deliver(joined, run.film, known=known.sha256 if known and is_ours else None, overwrite=run.overwrite)
    run.record = run.record.model_copy(update={"film": FilmFacts(sha256=digest, num_frames=run.num_shown())})
    run.save()


def check_film(run: RunFolder) -> None:
    """Refuse to make windows of a film that could not be put into its place, for another file lies there.

    Raises:
        UsageError: as above.
    """
    film, known = run.film, run.record.film
    if not film.exists() or run.overwrite:
        return
    if known is None or not film.is_file() or sha256_of(film) != known.sha256:
        raise UsageError(
            f"{film} exists and is no film of this run; move it away, then resume {run.path}, or pass --overwrite."
        )


def write_drift(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Write drift.json and drift.png from the windows' curves; return the summary, and what was not written."""
    windows = [run.window(k) for k in range(run.record.num_windows)]
    follows_clip = run.settings.clip is not None  # whose last frame is measured with the first window
    first = windows[0].first_frame - int(follows_clip)
    drift = Drift(joins=[w.first_frame - first for w in windows[0 if follows_clip else 1 :]])
    for window in windows:
        drift.add_curves(window.curves)
    notes = []
    for name in ("drift.json", "drift.png"):
        if not run.files.is_free(name):
            notes.append(f"{run.path / name} was changed since it was written; it is left as it is.")
        elif name == "drift.json":
            drift.write_json(run.files.file(name))
        else:
            drift.write_png(run.files.file(name), title=f"Drift of {run.film.name}")
    return drift.compute(), notes


def write_sheet(run: RunFolder) -> list[str]:
    """Write the contact sheet that was asked for, evenly spaced frames of the finished film; say if it is not.

    A sheet that only the run's record asks for is written beside the film, and where nothing of others lies.
    """
    target, asked = run.sheet, run.settings.contact_sheet
    if target is None and asked is not None:
        target = Path(asked)
        is_beside = target.is_absolute() and target.parent.resolve() == run.film.parent.resolve()
        if not is_beside or target.suffix.lower() != ".png" or target.name.startswith("."):
            return [
                f"{asked} is no picture beside the film, so no contact sheet is written; --contact-sheet names one."
            ]
    if target is None:
        return []
    frames, labels = evenly_spaced(run.film, SHEET_FRAMES)
    scale = SHEET_WIDTH / frames.shape[-1]
    scale = max(1, round(scale)) if scale > 1 else scale
    made = run.files.file(SHEET)
    save_contact_sheet(made, frames, SHEET_COLUMNS, scale, labels=labels, overwrite=True)
    try:
        return _deliver_sheet(run, made, target)
    finally:
        run.files.remove(SHEET)


def _deliver_sheet(run: RunFolder, made: Path, target: Path) -> list[str]:
    digest = sha256_of(made)
    may_replace = run.overwrite
    if target.is_file() and not target.is_symlink() and not may_replace:
        there = sha256_of(target)
        if there == digest:
            return []
        may_replace = there == run.record.sheet
    try:
        with atomic_path(target, overwrite=may_replace) as beside:  # it may lie on another disk
            shutil.copyfile(made, beside)
    except UsageError as error:
        return [f"the contact sheet was not written: {error}"]
    run.record = run.record.model_copy(update={"sheet": digest})
    run.save()
    return []


def evenly_spaced(clip: Path, count: int) -> tuple[torch.Tensor, list[int]]:
    """Return up to `count` frames of a clip, uint8 [n 3 h w], from its first to its last, and their numbers."""
    with open_video(clip) as reader:
        total = reader.meta.num_frames
        if reader.meta.num_frames_source != "counted" or clip.suffix.lower() == ".gif":
            total = sum(1 for _ in reader.frames())
        wanted = sorted({round(k * (total - 1) / max(1, count - 1)) for k in range(count)})
        frames = [frame.pixels for k in wanted for frame in reader.frames(k, k + 1)]
    return torch.stack(frames), wanted


def discard(run: RunFolder) -> list[str]:
    """Remove what the run of a finished film wrote; say if anything else is left."""
    if run.files.remove_all():
        return []
    return [f"{run.path} holds files that are not of the run, so the folder stays."]


def _frames(path: Path) -> Iterator[Frame]:
    with open_video(path) as reader:
        yield from reader.frames()
