"""What becomes of new frames on their way into a continued clip: its rate, its size, its look for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError
from latentvid.extension.plan import Window
from latentvid.film.folder import RunFolder
from latentvid.film.handover import HandOver
from latentvid.film.settings import ClipSettings, FilmSettings, clip_of
from latentvid.film.timing import Timing
from latentvid.video.append import Joint, NotAppendable, joint_of
from latentvid.video.pixels import resize
from latentvid.video.planes import Planes, planes_of
from latentvid.video.reader import PyAVReader

TICK = Fraction(1, 90_000)
"""The clock of films whose clip is encoded again; clips of any rate keep their times on it, nearly."""


@dataclass(frozen=True)
class ClipShots:
    """New frames at the clip's size and rate, encoded to be joined to it."""

    settings: FilmSettings
    given: int
    joint: Joint | None
    """What the clip's packets ask for, where they are copied."""
    planes: Planes | None = None
    """How the clip stores its pictures, where these are encoded again without loss."""
    hand_over: HandOver | None = None

    @property
    def clip(self) -> ClipSettings:
        return clip_of(self.settings)

    @property
    def size(self) -> tuple[int, int]:
        return self.clip.height, self.clip.width

    def __call__(self, window: Window, frames: Tensor, before: Tensor | None) -> Tensor:
        timing, start = Timing.of(self.settings, self.clip), window.new_from - self.given + 1
        numbers = [n for n in timing.within(start, start + window.num_new) if n <= self.clip.num_added]
        if not numbers:
            return frames[:0]
        front = frames[:1] if before is None else before
        reel = torch.cat([front, frames])
        places = [max(timing.shown_at(number) - start + len(front), Fraction(0)) for number in numbers]
        pictures = resize(torch.stack([_between(reel, place) for place in places]), *self.size)
        if self.hand_over is None:
            return pictures
        shown = self.clip.shown_before
        return torch.stack([self.hand_over(p, shown + n) for p, n in zip(pictures, numbers, strict=True)])

    def encoding(self) -> dict[str, Any]:
        if self.joint is not None:
            joint = self.joint
            return {"crf": self.settings.crf, "planes": joint.planes, "parameter_set": joint.parameter_set}
        return {**own_encoding(self.settings, self.planes), "time_base": TICK}


def clip_shots(run: RunFolder) -> ClipShots:
    """Return how the run's new frames get into the film.

    Raises:
        CheckpointError: the run folder lacks what they need.
    """
    clip = clip_of(run.settings)
    try:
        joint = joint_of(clip.path, run.film) if clip.how == "copy" else None
    except NotAppendable as error:  # which it could be when the run was begun
        raise CheckpointError(f"{clip.path}: cannot be continued, because {error}; was it changed?") from error
    hand_over = HandOver.load(run.hand_over, clip.hand_over_frames) if clip.hand_over_frames else None
    return ClipShots(run.settings, int(run.record.plan["given"]), joint, own_planes(clip), hand_over)


def why_not_stored(clip: ClipSettings) -> str:
    """Return why no file stores the clip's frames just as they are read, as part of a sentence; empty if one does."""
    reader = clip.reading.open(clip.path)
    if not isinstance(reader, PyAVReader):
        return "it is a picture" if Path(clip.path).is_file() else "it is a row of pictures"
    return "its pictures are deinterlaced" if reader.is_deinterlaced else ""


def own_planes(clip: ClipSettings) -> Planes | None:
    """Return how the clip stores its pictures, where they and the new ones are encoded without loss like that."""
    return planes_of(clip.path) if clip.how == "lossless" and clip.planes == "own" else None


def own_encoding(settings: FilmSettings, planes: Planes | None) -> dict[str, Any]:
    """Return the encoder of films whose clip is encoded again.

    Args:
        planes: as `own_planes` says.
    """
    clip = clip_of(settings)
    if planes is not None:
        return {"codec": planes.lossless_codec(Path(settings.film).suffix), "planes": planes}
    shape = {"sample_aspect_ratio": Fraction(clip.pixel_aspect)}
    if clip.how == "lossless":
        return {"codec": "h264-lossless", **shape}
    return {"codec": "h264", "crf": settings.crf, **shape}


def _between(reel: Tensor, place: Fraction) -> Tensor:
    """Return the picture at a place of [t 3 h w], mixed of the two that it lies between."""
    index = math.floor(place)
    share = float(place - index)
    return torch.lerp(reel[index], reel[index + 1], share) if share else reel[index]
