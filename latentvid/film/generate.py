"""A film from a prompt, as a file and a run folder; and the resuming of any run that was stopped."""

from __future__ import annotations

import platform
import time
import warnings
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch

from latentvid import __version__
from latentvid.autoencoders.image import hash_weights
from latentvid.core.errors import CheckpointError
from latentvid.core.files import locked
from latentvid.core.runtime import resolve_runtime
from latentvid.film.anchors import prepare_anchors
from latentvid.film.finish import discard, finish
from latentvid.film.folder import SEGMENT_SUFFIXES, RunFolder, run_path
from latentvid.film.guard import guard_notes
from latentvid.film.make import FilmReport, Maker, OnProgress, PlainShots, Shots, resumable, sampling_of
from latentvid.film.options import FilmOptions, film_settings, warn_of_long_prompts
from latentvid.film.preview import Preview
from latentvid.film.settings import DriftGuard, FilmSettings, RunRecord
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
    run = new_run(pipeline, settings, run_path(out))
    with locked(run.path):
        prepare_anchors(run, pipeline)
        return complete(run, pipeline, plain_shots(run), on_progress=on_progress)


def new_run(pipeline: LatentVideoPipeline, settings: FilmSettings, path: Path, *, given: int = 0) -> RunFolder:
    """Make the run folder of a new film."""
    plan = pipeline.plan(settings.num_frames, sampling_of(pipeline, settings), given=given)
    record = RunRecord(
        settings=settings,
        plan=asdict(plan),
        num_windows=plan.num_windows,
        weights=weights_of(pipeline),
        versions=_versions(),
    )
    return RunFolder.create(path, record, overwrite=settings.overwrite)


def resume_film(
    run: str | Path,
    *,
    pipeline: LatentVideoPipeline | None = None,
    drift_guard: DriftGuard | None = None,
    drift_limit: float | None = None,
    on_progress: OnProgress | None = None,
) -> FilmReport:
    """Go on where a run stopped; the film becomes the one that the run was begun for, byte for byte.

    Args:
        run: the folder, or the film that it makes.
        pipeline: the model, if it was not loaded from a folder.
        drift_guard, drift_limit: from now on, instead of the run's own.

    Raises:
        InputError: no run folder.
        CheckpointError: the run or the model is damaged or was changed.
    """
    from latentvid.film.extend import prepare_clip

    folder = RunFolder.open(run)
    with locked(folder.path):
        folder.sweep()
        pipeline = pipeline or load_pipeline(folder.settings)
        check_model(folder, pipeline)
        done = folder.num_complete()
        if done < folder.record.num_windows:
            warn_of_long_prompts(pipeline, folder.settings)
        folder.verify(done)
        folder.change(drift_guard=drift_guard, drift_limit=drift_limit)
        if not done:
            prepare_anchors(folder, pipeline)
        if folder.settings.clip is not None and not done:
            prepare_clip(folder, pipeline)
        return complete(folder, pipeline, shots_of(folder), first=done, on_progress=on_progress)


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
        discard(run)
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
    from latentvid.film.clip_shots import clip_shots

    return clip_shots(run)


def plain_shots(run: RunFolder) -> PlainShots:
    return PlainShots(run.settings, keeps_bits=run.film.suffix.lower() not in SEGMENT_SUFFIXES)


def load_pipeline(settings: FilmSettings) -> LatentVideoPipeline:
    """Load the model of a run, on the device and in the dtype that it was begun with.

    Raises:
        CheckpointError: the run does not know its model's folder, or it is gone.
        ResourceError: the device is not there.
    """
    if settings.model is None:
        raise CheckpointError("this run's model was made in memory; pass the pipeline to go on with it.")
    place = settings.place
    runtime = resolve_runtime(place.device, place.dtype, place.attention, place.compile, place.threads)
    return LatentVideoPipeline.from_pretrained(settings.model, runtime=runtime)


def check_model(run: RunFolder, pipeline: LatentVideoPipeline) -> None:
    """Refuse another model than the run's own; warn of other versions. Steps are spaced as the run was begun with.

    Raises:
        CheckpointError: weights differ.
    """
    if "spacing" not in run.record.weights:  # begun when all models' steps were evenly spaced, or by such a model
        pipeline.register_to_config(spacing="even")
    found = weights_of(pipeline)
    different = sorted(name for name, expected in run.record.weights.items() if found.get(name) != expected)
    if different:
        raise CheckpointError(
            f"{run.path}: the model's {', '.join(different)} changed since the run was begun; the rest of the film "
            "would be another one. Put the old weights back, or start anew with --overwrite."
        )
    versions = _versions()
    changed = [
        f"{name} {old} is now {versions.get(name)}"
        for name, old in run.record.versions.items()
        if versions.get(name) != old
    ]
    if changed:
        warnings.warn(f"{'; '.join(changed)}: the rest of the film may differ in its last bits.", stacklevel=2)


def weights_of(pipeline: LatentVideoPipeline) -> dict[str, str]:
    """Return hashes of all that a film's pixels depend on in the model."""
    prior = {k: v for k, v in dict(pipeline.noise_prior.config).items() if not k.startswith("_")}
    scheduler = {k: v for k, v in dict(pipeline.scheduler.config).items() if not k.startswith("_")}
    spacing = {} if pipeline.config.spacing == "even" else {"spacing": pipeline.config.spacing}
    return spacing | {
        "unet": hash_weights(pipeline.unet.state_dict()),
        "vae": hash_weights(pipeline.autoencoder.state_dict()),
        "text_encoder": hash_weights(pipeline.text_encoder.state_dict()),
        "noise_prior": f"{type(pipeline.noise_prior).__name__} {sorted(prior.items())}",
        "scheduler": f"{type(pipeline.scheduler).__name__} {sorted(scheduler.items(), key=lambda kv: kv[0])}",
    }


def finish_run(run: RunFolder) -> tuple[dict[str, float], list[str]]:
    """Join a run's film; return the drift's summary and what the user should know."""
    with resumable(run.path):
        Preview(run).show(run.record.num_windows, is_whole=True)
        if run.settings.clip is None:
            drift, notes = finish(run), list[str]()
        else:
            from latentvid.film.extend import finish_extension

            drift, notes = finish_extension(run)
        return drift, [*notes, *guard_notes(run)]


def _versions() -> dict[str, str]:
    return {
        "latentvid": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
