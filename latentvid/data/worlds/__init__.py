"""Procedural worlds: training data that needs no download."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from latentvid.core.errors import UsageError, did_you_mean

WORLDS = {"sky": "latentvid.data.worlds.sky"}


def open_world(name: str) -> ModuleType:
    """Return a world: a module with `sample_scene`, `render` and `caption`.

    Raises:
        UsageError: there is no such world.
    """
    if name not in WORLDS:
        raise UsageError(f"world {name!r} is not known{did_you_mean(name, WORLDS)}")
    return import_module(WORLDS[name])
