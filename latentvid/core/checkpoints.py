"""What a checkpoint folder says about itself, read without loading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentvid.core.config import parse_yaml
from latentvid.core.errors import CheckpointError, InputError
from latentvid.core.headers import inside
from latentvid.core.headers import read_header as read_header
from latentvid.core.reading import read_json, read_start
from latentvid.core.weights import PICKLES, find_weights

LARGEST_CARD = 1 << 16
"""Bytes of a model card that are looked at."""
LARGEST_CONFIG = 1 << 22
LARGEST_NUMBER = 1 << 14
"""No width, count or size in a network's config is larger; one that is would take the machine down."""


def read_settings(path: Path, *, largest: int = LARGEST_NUMBER, may_be_infinite: Sequence[str] = ()) -> dict[str, Any]:
    """Return the config of a component, with numbers of this world.

    Args:
        largest: that a whole number, or the length of a list, may be.
        may_be_infinite: keys of numbers that need not be finite.

    Raises:
        CheckpointError: it is missing, damaged, or leads out of its folder; or a number is out of bounds.
    """
    config = _config(path)
    _check_numbers({k: v for k, v in config.items() if k not in may_be_infinite}, path, largest)
    return config


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
    try:
        name = folder.resolve().name
    except (OSError, RuntimeError, ValueError):
        name = folder.name
    return {
        "name": name,
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
        if Path(name).name != name or "\0" in name or not inside(folder, folder / name).is_dir():
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
    names = sorted(path.name for path in folder.iterdir())
    weights = find_weights(folder, any_variant=True) if _has_weights(names) else None
    kinds = config.get("_class_name") or config.get("architectures") or ""
    kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
    found: dict[str, Any] = {"class": kind} if kind and isinstance(kind, str) else {}
    found |= {
        "num_parameters": weights.num_parameters if weights else 0,
        "num_bytes": sum(path.stat().st_size for path in weights.files) if weights else 0,
        "dtypes": weights.dtypes if weights else [],
    }
    read = {path.name for path in weights.files} if weights else set()
    unread = [name for name in names if Path(name).suffix in PICKLES and name not in read]
    return {**found, "unread": unread} if unread else found


def _has_weights(names: list[str]) -> bool:
    return any(Path(name).suffix in (".safetensors", *PICKLES) for name in names)


def _resolution(folder: Path) -> list[int] | None:
    """Return [height, width] in pixels of a pipeline's native frame, where its configs tell it."""
    vae, unet = (folder / name / "config.json" for name in ("vae", "unet"))
    if not (vae.is_file() and unet.is_file()):
        return None
    settings = _config(vae)
    image = settings.get("image_autoencoder")
    settings = image if isinstance(image, dict) else settings
    blocks = settings.get("block_out_channels") or settings.get("encoder_block_out_channels")
    size = _config(unet).get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if not (isinstance(blocks, list) and 0 < len(blocks) < 32 and len(sides) == 2):
        return None
    if not all(type(side) is int and 0 < side < 1 << 24 for side in sides):
        return None
    return [side * 2 ** (len(blocks) - 1) for side in sides]


def _check_numbers(value: Any, path: Path, largest: int) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if len(value) > largest:
            raise CheckpointError(f"{path}: a list of {len(value)} entries is none of a network's config.")
        for item in value:
            _check_numbers(item, path, largest)
    elif isinstance(value, int) and abs(value) > largest:
        raise CheckpointError(f"{path}: the number {value} is no size of a network.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path}: {value} is no setting of a network.")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(inside(path.parent, path), max_bytes=LARGEST_CONFIG)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}, not a table of settings.")
    return config


def _model_card(path: Path) -> dict[str, Any]:
    """Return the front matter of a model card; a card without one, or a broken one, says nothing."""
    try:
        text = read_start(inside(path.parent, path), LARGEST_CARD).decode("utf-8", errors="ignore")
    except (CheckpointError, InputError):
        return {}
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        card = parse_yaml(text[4 : text.index("\n---", 4)])
    except ValueError:
        return {}
    return json.loads(json.dumps(card, default=str)) if isinstance(card, dict) else {}
