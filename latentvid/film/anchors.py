"""Pictures that a film begins or ends with: frames whose latents are given, shown clean to the windows they stand in.

Needs a model that was trained with a noise level per frame ("Diffusion Forcing", arXiv 2407.01392).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import atomic_path, sha256_of
from latentvid.extension.plan import FilmPlan, Window
from latentvid.film.folder import RunFolder
from latentvid.film.settings import FilmSettings, Picture
from latentvid.pipeline import LatentVideoPipeline
from latentvid.sampling.context import with_clean_context
from latentvid.sampling.solver import Denoise
from latentvid.video.pixels import resize, to_float
from latentvid.video.reader import open_video


@dataclass(frozen=True)
class Anchors:
    """Latents [c 1 h w] by the number of their frame, as the plan counts it."""

    frames: dict[int, Tensor]

    def within(self, window: Window) -> list[int]:
        """Return the numbers of those that are new in a window."""
        return [number for number in self.frames if window.new_from <= number < window.keep_until]

    def hold(self, denoise: Denoise, window: Window) -> Denoise:
        """Show a window's denoiser the frames that are given in it; they come out as they are."""
        numbers = self.within(window)
        if not numbers:
            return denoise
        clean = torch.cat([self.frames[number] for number in numbers], dim=1)[None]
        return with_clean_context(denoise, clean, places=[number - window.start for number in numbers])


def picture(pipeline: LatentVideoPipeline, path: str | Path | None) -> Picture | None:
    """Return what a run remembers of a picture that was named, or None.

    Raises:
        InputError: it cannot be read.
        UsageError: the model cannot be given frames.
    """
    if path is None:
        return None
    if pipeline.config.overlap_rule["kind"] != "context":
        raise UsageError(
            f"{path}: this model was trained with one noise level for all frames of a window and cannot be given "
            "some of them; only models whose own rule is context can."
        )
    with open_video(path):
        return Picture(path=str(Path(path).resolve()), sha256=sha256_of(path))


def prepare_anchors(run: RunFolder, pipeline: LatentVideoPipeline) -> None:
    """Encode the pictures of a run into its folder.

    Raises:
        InputError: one is gone or was changed.
    """
    settings, plan = run.settings, FilmPlan(**run.record.plan)  # type: ignore[arg-type]
    last = plan.given + plan.num_frames - 1
    pictures = {number: one for number, one in ((0, settings.start_image), (last, settings.end_image)) if one}
    if pictures:
        frames = {str(number): _encoded(pipeline, settings, one) for number, one in pictures.items()}
        with atomic_path(run.anchors) as beside:
            save_file(frames, beside)


def load_anchors(run: RunFolder, device: torch.device) -> Anchors:
    """Return the frames that are given in a run.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    if run.settings.start_image is None and run.settings.end_image is None:
        return Anchors({})
    try:
        return Anchors({int(name): value.to(device) for name, value in load_file(run.anchors).items()})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{run.anchors}: missing or damaged ({error}); make the film again.") from error


def _encoded(pipeline: LatentVideoPipeline, settings: FilmSettings, one: Picture) -> Tensor:
    if not Path(one.path).is_file() or sha256_of(one.path) != one.sha256:
        raise InputError(f"{one.path}: the picture is gone or was changed since the run was begun.")
    with open_video(one.path) as reader:
        pixels = next(iter(reader.frames())).pixels[None]
    frame = to_float(resize(pixels, settings.height, settings.width))
    with torch.no_grad():
        return torch.cat(list(pipeline.autoencoder.encode([frame])), dim=1).cpu().contiguous()
