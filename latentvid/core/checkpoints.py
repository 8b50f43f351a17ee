"""What a checkpoint folder or a safetensors file says about itself, read without loading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from latentvid.core.errors import CheckpointError, InputError
from latentvid.core.files import read_json

_UNREAD = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Header:
    """The table at the front of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name to (dtype as the file writes it, shape)."""

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            tensors = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
            return Header(dict(opened.metadata() or {}), tensors)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error}).") from error


def describe_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Return what a diffusers folder holds: class, components, sizes, licence, and metrics where they were written.

    Raises:
        CheckpointError: it is no checkpoint, or a file of it is damaged.
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    if index.is_file():
        found = _pipeline(folder, _config(index))
    elif (folder / "config.json").is_file():
        found = {"type": "component", **_component(folder)}
    else:
        raise CheckpointError(f"{folder} holds neither model_index.json nor config.json; it is no checkpoint.")
    card = _model_card(folder / "README.md")
    metrics = folder / "metrics.json"
    return {
        "name": folder.resolve().name,
        "path": str(folder),
        **found,
        "license": card.get("license"),
        "base_model": card.get("base_model"),
        "metrics": _config(metrics) if metrics.is_file() else None,
    }


def _pipeline(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    components: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith("_") or not (isinstance(entry, list) and len(entry) == 2):
            continue
        if entry[1] is None:
            components[name] = None
            continue
        if not (folder / name).is_dir() or Path(name).name != name:
            raise CheckpointError(f"{folder}: the component {name!r} that model_index.json names is missing.")
        components[name] = {"class": str(entry[1]), **_component(folder / name)}
    present = [c for c in components.values() if c]
    return {
        "type": "pipeline",
        "class": str(index.get("_class_name", "unknown")),
        "components": components,
        "num_parameters": sum(c["num_parameters"] for c in present),
        "num_bytes": sum(c["num_bytes"] for c in present),
        "resolution": _resolution(folder),
    }


def _component(folder: Path) -> dict[str, Any]:
    config = _config(folder / "config.json") if (folder / "config.json").is_file() else {}
    weights = sorted(folder.glob("*.safetensors"))
    headers = [read_header(path) for path in weights]
    kind = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    found: dict[str, Any] = {"class": str(kind)} if kind else {}
    found |= {
        "num_parameters": sum(header.num_parameters for header in headers),
        "num_bytes": sum(path.stat().st_size for path in weights),
        "dtypes": sorted({dtype for header in headers for dtype, _ in header.tensors.values()}),
    }
    unread = sorted(path.name for path in folder.iterdir() if path.suffix in _UNREAD)
    return {**found, "unread": unread} if unread else found


def _resolution(folder: Path) -> list[int] | None:
    """Return [height, width] in pixels of a pipeline's native frame, where its configs tell it."""
    vae, unet = (folder / name / "config.json" for name in ("vae", "unet"))
    if not (vae.is_file() and unet.is_file()):
        return None
    settings = _config(vae)
    settings = settings.get("image_autoencoder") or settings
    blocks = settings.get("block_out_channels") or settings.get("encoder_block_out_channels")
    size = _config(unet).get("sample_size")
    if not blocks or not size:
        return None
    sides = size if isinstance(size, list) else [size, size]
    return [int(side) * 2 ** (len(blocks) - 1) for side in sides]


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}, not a table of settings.")
    return config


def _model_card(path: Path) -> dict[str, Any]:
    """Return the front matter of a model card; a card without one, or a broken one, says nothing."""
    try:
        text = path.read_text(encoding="utf-8")[: 1 << 16]
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        card = yaml.safe_load(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError:
        return {}
    return json.loads(json.dumps(card, default=str)) if isinstance(card, dict) else {}
