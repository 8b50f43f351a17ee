"""What begins the run of a film, and what has to fit before one goes on."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
from safetensors import SafetensorError

from latentvid import __version__
from latentvid.autoencoders.image import hash_weights
from latentvid.core.config import validate
from latentvid.core.errors import CheckpointError
from latentvid.core.files import resource_errors
from latentvid.core.runtime import resolve_runtime
from latentvid.film.folder import RunFolder, check_inputs, run_path
from latentvid.film.make import sampling_of
from latentvid.film.options import FilmOptions
from latentvid.film.settings import FilmSettings, RunRecord
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.append import NotAppendable

_BROKEN = (
    RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError, OSError,
    SafetensorError, NotAppendable,
)  # fmt: skip
"""What reading, and computing with, tensors and tables of unforeseen shapes may raise."""


@contextmanager
def new_run(
    pipeline: LatentVideoPipeline,
    settings: FilmSettings,
    out: Path,
    options: FilmOptions,
    *inputs: str | Path | None,
    given: int = 0,
) -> Iterator[RunFolder]:
    """Make the run folder of a new film, and hold it while the block runs.

    Args:
        inputs: files that the film is made of.

    Raises:
        UsageError: the folder is taken, or holds an input.
        ResourceError: another process is working in it.
    """
    check_inputs(out, options.get("contact_sheet"), *inputs, options.get("end_image"), options.get("model"))
    plan = pipeline.plan(settings.num_frames, sampling_of(pipeline, settings), given=given)
    facts = {
        "settings": settings,
        "plan": asdict(plan),
        "num_windows": plan.num_windows,
        "weights": weights_of(pipeline),
        "versions": _versions(),
    }
    record = validate(facts, RunRecord)
    with RunFolder.create(run_path(out), record, overwrite=settings.overwrite) as run:
        run.sheet = Path(settings.contact_sheet) if settings.contact_sheet else None
        yield run


@contextmanager
def consistent(run: RunFolder) -> Iterator[None]:
    """Tell of a run folder whose files do not go together in one sentence; what they hold can be anything.

    Raises:
        CheckpointError: as above.
    """
    try:
        with resource_errors(run.path):
            yield
    except _BROKEN as error:
        if isinstance(error, (torch.OutOfMemoryError, RecursionError)) or "can't allocate memory" in str(error):
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{run.path}: its files do not go together ({what}); the film cannot go on from here. Make it again."
        ) from error


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
    known = run.record.weights
    different = sorted(name for name in known.keys() | found.keys() if found.get(name) != known.get(name))
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


def _versions() -> dict[str, str]:
    return {
        "latentvid": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
