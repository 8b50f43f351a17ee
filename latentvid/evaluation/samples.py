"""Do prompts matter? Clips are made for described scenes, and what they show is read back from their pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from latentvid.data.worlds.measure import measure
from latentvid.data.worlds.sky_captions import COVERS, DIRECTIONS, GROUNDS, SPEEDS, TIMES, canonical_caption
from latentvid.pipeline import LatentVideoPipeline

ASKED = {
    "time_of_day": TIMES,
    "ground": GROUNDS,
    "cloud_cover": COVERS,
    "wind_direction": DIRECTIONS,
    "wind_speed": SPEEDS,
}
FAST_FROM = 0.0148
"""Widths per frame: halfway between the slow and the fast winds of the world."""


@dataclass(frozen=True)
class AskedScene:
    """What a prompt asks for, in the words of the sky world."""

    time_of_day: str
    ground: str
    cloud_cover: str
    wind_direction: str
    wind_speed: str

    @property
    def prompt(self) -> str:
        return canonical_caption(self)


def asked_scenes(count: int) -> list[AskedScene]:
    """Return `count` scenes in which every pair of attribute values turns up about equally often."""
    every = [AskedScene(*words) for words in product(*ASKED.values())]
    step = 97  # coprime to the 240 combinations, so that any beginning is spread over all of them
    return [every[(k * step) % len(every)] for k in range(count)]


def read_clip(video: Tensor) -> dict[str, str]:
    """Return the attributes that a clip shows; `video` is uint8 [t 3 h w]."""
    found = measure(video)
    speed = abs(found["wind_px_per_frame"]) / video.shape[-1]
    read = {name: str(found[name]) for name in ("time_of_day", "ground", "cloud_cover", "wind_direction")}
    return {**read, "wind_speed": "fast" if speed >= FAST_FROM else "slow"}


def evaluate_samples(
    pipeline: LatentVideoPipeline,
    *,
    num_clips: int = 40,
    batch: int = 4,
    seed: int = 1000,
    on_clip: Callable[[int, int], None] | None = None,
    on_video: Callable[[AskedScene, Tensor], None] | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Make clips and return, for each attribute, the share that shows what was asked, beside chance.

    Args:
        pipeline: a model of the sky world.
        num_clips: one window each.
        on_clip: progress, (done, total).
        on_video: sees every clip, uint8 [t 3 h w].
        sampling: arguments of the pipeline (`num_inference_steps`, `guidance_scale`, ...).
    """
    scenes = asked_scenes(num_clips)
    rows: list[tuple[AskedScene, dict[str, str]]] = []
    for start, part in _batches(scenes, batch):
        seeds = [seed + start + k for k in range(len(part))]
        clips = pipeline([s.prompt for s in part], generator=seeds, output_type="pt", **sampling).frames
        for scene, clip in zip(part, clips, strict=True):
            video = (clip * 255).round().to(torch.uint8)
            rows.append((scene, read_clip(video)))
            if on_video:
                on_video(scene, video)
        if on_clip:
            on_clip(len(rows), num_clips)
    figures = {
        name: {
            "right": sum(read[name] == getattr(scene, name) for scene, read in rows) / len(rows),
            "chance": 1 / len(words),
        }
        for name, words in ASKED.items()
    }
    return {"num_clips": num_clips, "seed": seed, "sampling": sampling, "attributes": figures}


def _batches(scenes: Sequence[AskedScene], size: int) -> Iterator[tuple[int, Sequence[AskedScene]]]:
    for start in range(0, len(scenes), size):
        yield start, scenes[start : start + size]
