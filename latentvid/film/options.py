"""What every film may be told, made or continued: one list of options, and the settings that they become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from latentvid.core.config import validate
from latentvid.core.errors import UsageError
from latentvid.core.files import check_output
from latentvid.core.runtime import Runtime
from latentvid.extension.guard import CORRECTED
from latentvid.extension.rules import OverlapRule
from latentvid.film.anchors import picture
from latentvid.film.prompts import PromptSchedule
from latentvid.film.settings import DriftGuard, FilmSettings, Place
from latentvid.pipeline import LatentVideoPipeline, validate_rule
from latentvid.video.encoders import choose_codec
from latentvid.video.rate import as_rate


class FilmOptions(TypedDict, total=False):
    """Keyword arguments of `generate_film` and `extend_clip`; what is left out is as `FilmSettings` has it."""

    seed: int
    negative_prompt: str
    prompts: PromptSchedule | None
    """Other prompts on the way, instead of the one."""
    num_inference_steps: int
    """Solver steps per window."""
    guidance_scale: float | None
    guidance_rescale: float
    solver: str
    rule: OverlapRule | Mapping[str, Any] | None
    """How windows follow each other; the model's own by default."""
    drift_guard: DriftGuard
    """What to do about a window that moved too far from the scene's first: "correct", if not told."""
    drift_limit: float
    """How far that is, as a share of the first window's values: 0.3, or `CORRECTED` where windows are corrected."""
    end_image: str | Path | None
    """Picture that the film ends with, for models that can be given frames."""
    crf: float
    """H.264 quality, 0 (best) .. 51."""
    contact_sheet: str | Path | None
    """PNG of evenly spaced frames."""
    overwrite: bool
    """Replace an older film and its run folder."""
    keep_run: bool
    """Leave the run folder there when the film is finished."""
    model: str | Path | None
    """Folder that the pipeline was loaded from, for resuming."""
    runtime: Runtime | None
    """What it was loaded with."""


def film_settings(pipeline: LatentVideoPipeline, out: Path, options: FilmOptions, **own: Any) -> FilmSettings:
    """Check the outputs, and return the settings of a new film.

    Args:
        own: settings that one kind of film has, or derives.

    Raises:
        UsageError: an output exists or cannot be written, or an option is not known or cannot be.
    """
    given: dict[str, Any] = dict(options)
    overwrite = given.get("overwrite", False)
    check_output(out, overwrite=overwrite)
    if choose_codec(out, None) == "still" and own["num_frames"] > 1:
        raise UsageError(f"{out}: a {out.suffix} file holds one picture; name a video file, or ask for 1 frame.")
    for name in ("contact_sheet", "model"):
        given[name] = str(Path(given[name]).resolve()) if given.get(name) is not None else None
    if given["contact_sheet"] is not None:
        check_output(given["contact_sheet"], overwrite=overwrite)
    for name in ("start_image", "end_image"):
        given[name] = picture(pipeline, {**given, **own}.get(name))
        own.pop(name, None)
    given.setdefault("drift_guard", "correct")
    if given["drift_guard"] == "correct":
        given.setdefault("drift_limit", CORRECTED)
    rule = validate_rule(given.pop("rule", None) or pipeline.config.overlap_rule)
    place = _place(given.pop("runtime", None), pipeline)
    fps = str(as_rate(pipeline.config.fps))
    settings = validate(
        {"film": out.name, "rule": rule, "place": place, "fps": fps, "model_fps": fps, **given, **own}, FilmSettings
    )
    warn_of_long_prompts(pipeline, settings)
    return settings


def warn_of_long_prompts(pipeline: LatentVideoPipeline, settings: FilmSettings) -> None:
    """Warn of a film's prompts that are longer than the model's text encoder takes."""
    prompts = [("prompt", settings.prompt)] if settings.prompts is None else settings.prompts.named()
    pipeline.warn_of_long([*prompts, ("negative prompt", settings.negative_prompt)])


def _place(runtime: Runtime | None, pipeline: LatentVideoPipeline) -> Place:
    if runtime is None:
        dtype = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[pipeline.unet.dtype]
        return Place(device=str(pipeline.compute_device), dtype=dtype, threads=torch.get_num_threads())
    about = runtime.describe()
    return Place(**{name: about[name] for name in ("device", "dtype", "attention", "compile", "threads")})
