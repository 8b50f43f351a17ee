"""A film from a prompt, as a file and a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentvid.film.anchors import prepare_anchors
from latentvid.film.complete import complete, plain_shots
from latentvid.film.make import FilmReport, OnProgress, resumable
from latentvid.film.options import FilmOptions, film_settings
from latentvid.film.runs import new_run
from latentvid.pipeline import LatentVideoPipeline

if TYPE_CHECKING:
    from typing_extensions import Unpack


def generate_film(
    pipeline: LatentVideoPipeline,
    prompt: str,
    out: str | Path,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    start_image: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[FilmOptions],
) -> FilmReport:
    """Make a film of any length in constant memory. Its first frames do not depend on its length.

    Beside OUT.mp4 a folder OUT.run grows, from which `resume_film` goes on after a kill at any moment and ends with
    the same bytes.

    Args:
        pipeline: the model.
        prompt: what to show.
        out: `.mp4`, `.m4v`, `.mov` or `.mkv`; `.gif`; `.png`, `.jpg` or `.webp` for a single frame.
        num_frames: one window by default.
        height, width: in pixels; what the model was trained at by default.
        start_image: picture that the film begins with, for models that can be given frames.
        on_progress: hears of every denoiser call.
        options: as `FilmOptions` lists them.

    Raises:
        UsageError: an output that exists or cannot be written, or settings that cannot be.
        ResourceError: disk or device gave out; the run can be resumed.
        PartialFailure: the drift guard stopped it; the run can be resumed.
    """
    out = Path(out)
    settings = film_settings(
        pipeline,
        out,
        options,
        prompt=prompt,
        num_frames=num_frames or pipeline.config.num_frames,
        height=height or pipeline.default_size[0],
        width=width or pipeline.default_size[1],
        start_image=start_image,
    )
    with new_run(pipeline, settings, out, options, start_image) as run:
        with resumable(run.path):
            prepare_anchors(run, pipeline)
        return complete(run, pipeline, plain_shots(run), on_progress=on_progress)
