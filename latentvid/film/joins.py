"""Where the windows of a film of ours meet, as far as its run folder is there to tell."""

from __future__ import annotations

from pathlib import Path

from latentvid.core.errors import LatentVidError
from latentvid.film.folder import RunFolder, run_path


def joins_of_film(clip: str | Path) -> list[int]:
    """Return the first frame of every window but the film's first; none for a video that is no film of ours."""
    clip = Path(clip)
    try:
        run = RunFolder.open(run_path(clip))
        if run.film.resolve() != clip.resolve() or run.record.film is None:
            return []
        at = _own_frames(run)
        joins = [at] if at else []
        for index in range(run.record.num_windows - 1):
            at += run.window(index).num_shown
            joins.append(at)
        return joins
    except LatentVidError:
        return []


def _own_frames(run: RunFolder) -> int:
    """Return the frames of the clip that the film continues."""
    return run.settings.clip.num_frames if run.settings.clip is not None else 0
