"""Words for skies: each attribute has one fixed word or phrase that every caption naming it uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from latentvid.core.rng import Rng

TIMES = ("dawn", "day", "dusk", "night")
GROUNDS = ("hills", "mountains", "sea", "desert", "forest")
DIRECTIONS = ("left", "right")
SPEEDS = ("slow", "fast")
COVERS = ("clear", "scattered", "overcast")

_OMITTED = 0.1
_TIME = {"dawn": ("at dawn",), "day": ("by day", "during the day"), "dusk": ("at dusk",), "night": ("at night",)}
_GROUND = {
    "hills": ("over hills", "over green hills", "above the hills"),
    "mountains": ("over mountains", "over snowy mountains", "above the mountains"),
    "sea": ("over the sea", "above the sea", "over a calm sea"),
    "desert": ("over the desert", "over a sandy desert", "above the desert"),
    "forest": ("over a forest", "above the forest", "over a dark forest"),
}
_MOTION = ("drifting", "moving", "blowing", "sailing")


def canonical_caption(scene: Any) -> str:
    """Return the full description of a `SkyScene` in fixed words.

    A clear sky has thin clouds, so that its wind can be seen.
    """
    clouds = {"clear": "thin clouds", "scattered": "scattered clouds", "overcast": "overcast clouds"}[scene.cloud_cover]
    if scene.cloud_cover == "clear":
        clouds = "clear sky, thin clouds"
    return (
        f"{clouds}, {scene.wind_speed} wind to the {scene.wind_direction}, "
        f"{_GROUND[scene.ground][0]} {_TIME[scene.time_of_day][0]}"
    )


def caption(scene: Any, rng: Rng | int) -> str:
    """Return one of many ways to say it, at most 24 words; each attribute is left out one time in ten."""
    seed = rng if isinstance(rng, int) else rng.seed_of("caption")
    return _compose(scene, np.random.default_rng(seed))


def caption_corpus(scenes: Iterator[Any], num_captions: int) -> Iterator[str]:
    """Yield the canonical and a free caption of `scenes` until there are `num_captions`."""
    spoken = ((canonical_caption(scene), caption(scene, i)) for i, scene in enumerate(scenes))
    yield from itertools.islice(itertools.chain.from_iterable(spoken), num_captions)


def _compose(scene: Any, draw: np.random.Generator) -> str:
    def pick(options: tuple[str, ...]) -> str:
        return options[int(draw.integers(len(options)))]

    def kept(text: str) -> str:
        return text if draw.uniform() >= _OMITTED else ""

    time, ground = kept(pick(_TIME[scene.time_of_day])), kept(pick(_GROUND[scene.ground]))
    speed, direction, cover = kept(scene.wind_speed), kept(scene.wind_direction), kept(scene.cloud_cover)
    motion = pick(_MOTION)
    clouds = {"clear": "thin clouds", "scattered": "scattered clouds", "overcast": "overcast clouds", "": "clouds"}[
        cover
    ]
    form = int(draw.integers(4))
    if form == 0:
        sky = " in a clear sky" if cover == "clear" else ""
        text = f"{speed} {clouds} {motion} {direction}{sky} {ground} {time}"
    elif form == 1:
        wind = f"{speed} wind to the {direction}" if direction else f"{speed} wind"
        article = "an" if cover == "overcast" else "a"
        sky = {"scattered": "a sky of scattered clouds", "": "a sky"}.get(cover, f"{article} {cover} sky")
        text = f"{sky} {ground} {time}, {wind}"
    elif form == 2:
        place = " ".join(part for part in (time, ground) if part)
        where = f"to the {direction}" if direction else ""
        sky = "clear sky, " if cover == "clear" else ""
        wind = f"a {speed} wind" if speed else "the wind"
        text = f"{place}, {sky}{clouds} {motion} {where} in {wind}"
    else:
        sky = ", clear sky" if cover == "clear" else ""
        text = f"a video of {clouds} {motion} {direction} {ground} {time}{sky}" + (f", {speed} wind" if speed else "")
    return " ".join(text.replace(" ,", ",").split()).strip(" ,").replace(" ,", ",")
