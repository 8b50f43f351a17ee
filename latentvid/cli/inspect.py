"""`latentvid inspect`: what a thing is, without loading weights."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from latentvid.cli import common
from latentvid.cli.output import Output, table


def run(
    thing: Annotated[
        Path, typer.Argument(metavar="THING", help="A video, latent file, checkpoint, run folder or config.")
    ],
    fps: common.Fps = None,
    deinterlace: common.Deinterlace = False,
    json: common.Json = False,
    quiet: common.Quiet = False,
) -> None:
    """Say what a file or folder is.

    Takes a video, a latent file, a checkpoint, a run folder or a config; no weights are loaded.

    \b
    Example:
      latentvid inspect clip.mp4 --json
    """
    facts = _reader_for(thing, Reading(fps, deinterlace))(thing)
    Output(as_json=json, quiet=quiet).result(facts, table(facts))


class Reading(NamedTuple):
    """How a video is read."""

    fps: Fraction | None
    deinterlace: bool


def _reader_for(thing: Path, reading: Reading) -> Callable[[Path], dict[str, Any]]:
    from latentvid.core.errors import InputError
    from latentvid.video.numbered import numbered_pictures

    if numbered_pictures(thing) is not None:
        return partial(_video, reading=reading)
    if not thing.exists():
        from latentvid.core.places import checkpoint_names

        if str(thing) in checkpoint_names():
            return _checkpoint
        raise InputError(f"{thing}: no such file or folder.")
    if thing.is_dir():
        return _run_folder if (thing / "run.json").is_file() else _checkpoint
    if thing.suffix == ".safetensors":
        return _safetensors
    if thing.suffix in (".yaml", ".yml"):
        return _config
    return partial(_video, reading=reading)


def _video(path: Path, reading: Reading) -> dict[str, Any]:
    from latentvid.video.reader import open_video

    with open_video(path, fps=reading.fps, deinterlace=reading.deinterlace) as reader:
        return {"type": "video", **reader.meta.to_dict()}


def _checkpoint(path: Path) -> dict[str, Any]:
    from latentvid.core.checkpoints import describe_checkpoint
    from latentvid.core.places import find_checkpoint

    return describe_checkpoint(find_checkpoint(path))


def _safetensors(path: Path) -> dict[str, Any]:
    from latentvid.core.checkpoints import read_header

    header = read_header(path)
    facts: dict[str, Any] = {"path": str(path), "num_bytes": path.stat().st_size}
    if "latents" in header.tensors:
        tensors = {name: [dtype, *shape] for name, (dtype, shape) in header.tensors.items()}
        return {"type": "latents", **facts, "tensors": tensors, "metadata": _unpacked(header.metadata)}
    dtypes = sorted({dtype for dtype, _ in header.tensors.values()})
    counts = {"num_tensors": len(header.tensors), "num_parameters": header.num_parameters, "dtypes": dtypes}
    return {"type": "weights", **facts, **counts, "metadata": _unpacked(header.metadata)}


def _unpacked(metadata: dict[str, str]) -> dict[str, Any]:
    """Return metadata with its lists and tables read; safetensors can hold words only."""
    import json

    unpacked: dict[str, Any] = {}
    for key, text in sorted(metadata.items()):
        try:
            unpacked[key] = json.loads(text) if text[:1] in ("[", "{") else text
        except ValueError:
            unpacked[key] = text
    return unpacked


def _run_folder(path: Path) -> dict[str, Any]:
    from latentvid.core.errors import InputError
    from latentvid.core.files import read_json

    record = read_json(path / "run.json")
    if not isinstance(record, dict):
        raise InputError(f"{path / 'run.json'}: holds a {type(record).__name__}; a run's record is a table.")
    return {"type": "run", "path": str(path), **{k: v for k, v in record.items() if k not in ("type", "path")}}


def _config(path: Path) -> dict[str, Any]:
    from latentvid.core.config import read_tree

    return {"type": "config", "path": str(path), "settings": read_tree(path)}
