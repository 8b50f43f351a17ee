"""Making the windows of a run that are left, and the film of all."""

from __future__ import annotations

import time
from fractions import Fraction

from latentvid.film.clip_shots import clip_shots
from latentvid.film.finish import discard, finish, finish_extension
from latentvid.film.folder import SEGMENT_SUFFIXES, RunFolder
from latentvid.film.guard import guard_notes
from latentvid.film.make import FilmReport, Maker, OnProgress, PlainShots, Shots, resumable
from latentvid.film.preview import Preview
from latentvid.pipeline import LatentVideoPipeline


def complete(
    run: RunFolder,
    pipeline: LatentVideoPipeline,
    shots: Shots,
    *,
    first: int = 0,
    on_progress: OnProgress | None = None,
) -> FilmReport:
    """Make the windows from `first` on, and the film of all."""
    start = time.perf_counter()
    Maker(pipeline, run, shots, on_progress).make(first)
    drift, notes = finish_run(run)
    if not run.settings.keep_run:
        notes += discard(run)
    return report_of(run, shots, start=start, first=first, drift=drift, notes=notes)


def report_of(
    run: RunFolder, shots: Shots, *, start: float, first: int, drift: dict[str, float], notes: list[str]
) -> FilmReport:
    """Return what was made since `start` on the performance counter."""
    settings, (height, width) = run.settings, shots.size
    return FilmReport(
        out=str(run.film),
        run=str(run.path) if settings.keep_run else None,
        num_frames=run.record.film.num_frames if run.record.film else 0,
        num_windows=run.record.num_windows,
        fps=float(Fraction(settings.fps)),
        width=width,
        height=height,
        seed=settings.seed,
        prompt=settings.prompt,
        seconds=round(time.perf_counter() - start, 3),
        resumed_at=first,
        drift=drift,
        notes=notes,
    )


def shots_of(run: RunFolder) -> Shots:
    """Return how a run's frames get into its film."""
    if run.settings.clip is None:
        return plain_shots(run)
    return clip_shots(run)


def plain_shots(run: RunFolder) -> PlainShots:
    return PlainShots(run.settings, keeps_bits=run.film.suffix.lower() not in SEGMENT_SUFFIXES)


def finish_run(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Join a run's film; return the drift's summary and what the user should know."""
    with resumable(run.path):
        Preview(run).show(run.record.num_windows, is_whole=True)
        if run.settings.clip is None:
            drift, notes = finish(run)
        else:
            drift, notes = finish_extension(run)
        return drift, [*notes, *guard_notes(run)]
