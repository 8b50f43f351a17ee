"""Going on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path

from latentvid.core.files import check_output
from latentvid.film.anchors import prepare_anchors
from latentvid.film.complete import complete, shots_of
from latentvid.film.extend import check_clip, prepare_clip
from latentvid.film.finish import check_film
from latentvid.film.folder import RunFolder
from latentvid.film.make import FilmReport, OnProgress, resumable
from latentvid.film.options import warn_of_long_prompts
from latentvid.film.runs import check_model, consistent, load_pipeline
from latentvid.film.settings import DriftGuard
from latentvid.pipeline import LatentVideoPipeline


def resume_film(
    run: str | Path,
    *,
    pipeline: LatentVideoPipeline | None = None,
    drift_guard: DriftGuard | None = None,
    drift_limit: float | None = None,
    overwrite: bool = False,
    contact_sheet: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> FilmReport:
    """Go on where a run stopped; the film becomes the one that the run was begun for, byte for byte.

    Whatever the run's record says, nothing is written but the run, its film where no other file lies, and a contact
    sheet beside it in the same way.

    Args:
        run: the folder, or the film that it makes.
        pipeline: the model, if it was not loaded from a folder.
        drift_guard, drift_limit: from now on, instead of the run's own.
        overwrite: replace whatever lies where the film, or the contact sheet, is to go.
        contact_sheet: PNG of evenly spaced frames, anywhere.

    Raises:
        InputError: no run folder, or the clip that the film continues was changed.
        UsageError: another file lies where the film is to go.
        CheckpointError: the run or the model is damaged or was changed.
    """
    folder = RunFolder.open(run)
    folder.overwrite = overwrite
    if contact_sheet is not None:
        check_output(contact_sheet, overwrite=overwrite)
        folder.sheet = Path(contact_sheet)
    with folder.held(), consistent(folder):
        pipeline = pipeline or load_pipeline(folder.settings)
        check_model(folder, pipeline)
        done = folder.num_complete()
        if done < folder.record.num_windows:
            warn_of_long_prompts(pipeline, folder.settings)
        folder.verify(done)
        if done < folder.record.num_windows:
            check_film(folder)
        with resumable(folder.path):
            folder.change(drift_guard=drift_guard, drift_limit=drift_limit)
            if folder.settings.clip is not None:
                check_clip(folder)
            if not done:
                prepare_anchors(folder, pipeline)
            if folder.settings.clip is not None and not done:
                prepare_clip(folder, pipeline)
        return complete(folder, pipeline, shots_of(folder), first=done, on_progress=on_progress)
