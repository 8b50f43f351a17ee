"""Procedural worlds: captioned, seeded, endless clips whose described attributes can be measured from their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentvid.core.registry import Registry
from latentvid.core.rng import Rng


class World(Protocol):
    """What a world can do. A scene is a value: equal scenes render to equal frames."""

    fps: int

    def sample_scene(self, rng: Rng | int) -> Any:
        """Draw a scene; a function of the seed alone."""
        ...

    def turned_round(self, scene: Any) -> Any:
        """Return the scene that starts at the same frame and moves the other way."""
        ...

    def render(
        self, scene: Any, num_frames: int, height: int = 128, width: int = 128, *, start_frame: int = 0
    ) -> NDArray[np.uint8]:
        """Return frames start_frame .. start_frame + num_frames - 1, [t 3 h w]."""
        ...

    def caption(self, scene: Any, rng: Rng | int) -> str:
        """Return one of the ways to describe the scene."""
        ...

    def canonical_caption(self, scene: Any) -> str:
        """Return the full description in the world's plainest words."""
        ...

    def caption_corpus(self, num_captions: int = ...) -> Iterator[str]:
        """Yield captions that use every word of the world: what a tokenizer is trained on."""
        ...


worlds = Registry("world", {"sky": "latentvid.data.worlds.sky:SkyWorld"})


def open_world(name: str) -> World:
    """Return the world called `name`.

    Raises:
        UsageError: there is none.
    """
    world: World = worlds.get(name)()
    return world
