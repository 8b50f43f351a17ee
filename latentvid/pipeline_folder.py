"""Pipeline folders: which classes a `model_index.json` may name, and how each component is read.

diffusers imports whatever module an index names; here a name is looked up in a table, so that a folder can
choose among known classes and run nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.image import IMAGE_NETWORKS
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel, validate
from latentvid.core.errors import CheckpointError, InputError, UsageError, did_you_mean
from latentvid.core.files import read_json
from latentvid.core.places import find_checkpoint
from latentvid.core.runtime import Runtime
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.extension.rules import RuleConfig
from latentvid.noise import PRIORS
from latentvid.sampling.schedule import REFUSED, SCHEDULERS, Spacing, build_scheduler, schedule_of

UNETS = {"TemporalUNet": TemporalUNet, "UNet2DConditionModel": UNet2DConditionModel}
LARGEST_WINDOW = 4096


def load_components(
    path: Path, *, runtime: Runtime | None, max_memory: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a folder's components and its settings, as the pipeline's arguments.

    Raises:
        CheckpointError: see `LatentVideoPipeline.from_pretrained`.
    """
    folder = find_checkpoint(path)
    index = _index(folder)
    settings = _settings(folder, index)
    _named(folder, index, "vae", (*IMAGE_NETWORKS.kinds(), TemporalAutoencoder.__name__))
    components = {
        "vae": load_image_autoencoder(folder, runtime=runtime, max_memory=max_memory),
        "unet": _component(folder, index, "unet", tuple(UNETS), _unet),
        "text_encoder": _component(folder, index, "text_encoder", ("CLIPTextModel",), _text_encoder),
        "tokenizer": _component(folder, index, "tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"), _tokenizer),
        "scheduler": _component(
            folder, index, "scheduler", (*SCHEDULERS, *REFUSED), partial(_scheduler, spacing=settings["spacing"])
        ),
        "noise_prior": _noise_prior(folder, index),
    }
    return components, settings


class _Settings(StrictModel):
    num_frames: int = Field(16, ge=1, le=LARGEST_WINDOW)
    fps: float = Field(8.0, gt=0, le=1000)
    overlap_rule: RuleConfig | None = None
    spacing: Spacing = "even"


def _settings(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    given = {name: index[name] for name in _Settings.model_fields if name in index}
    try:
        validate(given, _Settings, source=folder / "model_index.json")
    except UsageError as error:
        raise CheckpointError(str(error)) from error
    is_ours = index.get("_class_name") == "LatentVideoPipeline"
    return {"spacing": "even" if is_ours else "scheduler"} | given


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = read_json(folder / "model_index.json")
    except InputError as error:
        raise CheckpointError(f"{folder} is no pipeline: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{folder / 'model_index.json'} is no table of components.")
    return index


def _named(folder: Path, index: dict[str, Any], name: str, known: Sequence[str]) -> str:
    """Return the class that the index names for a component, which must be one of `known`."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        raise CheckpointError(f"{folder / 'model_index.json'} names no {name}.")
    kind = entry[1]
    if kind not in known:
        raise CheckpointError(f"{folder}: the class {kind!r} of its {name} is not known{did_you_mean(kind, known)}")
    return kind


def _component(
    folder: Path, index: dict[str, Any], name: str, known: Sequence[str], load: Callable[[str, Path], Any]
) -> Any:
    kind, place = _named(folder, index, name, known), folder / name
    if not place.is_dir():
        raise CheckpointError(f"{place} is missing.")
    try:
        return load(kind, place)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors each have their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{place} cannot be loaded: {reason}") from error


def _unet(name: str, place: Path) -> TemporalUNet:
    unet, found = UNETS[name].from_pretrained(
        place, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
    )
    _check_whole(found, place)
    return unet if isinstance(unet, TemporalUNet) else TemporalUNet.from_image(unet)


def _text_encoder(name: str, place: Path) -> CLIPTextModel:
    encoder, found = CLIPTextModel.from_pretrained(
        place, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    _check_whole(found, place)
    return encoder


def _check_whole(found: dict[str, Any], place: Path) -> None:
    """Refuse weights that the file lacks: the libraries would draw them at random."""
    for key in sorted(found["missing_keys"]):
        raise CheckpointError(f"{place} lacks the weight {key}.")


def _tokenizer(name: str, place: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(place, local_files_only=True)


def _scheduler(name: str, place: Path, *, spacing: Spacing) -> Any:
    scheduler = build_scheduler(name, read_json(place / "scheduler_config.json"))
    schedule_of(scheduler, spacing)  # what cannot be read is refused here
    return scheduler


def _noise_prior(folder: Path, index: dict[str, Any]) -> Any:
    if "noise_prior" not in index:
        return PRIORS.get("iid")()  # an image model's
    classes = {PRIORS.get(kind).__name__: PRIORS.get(kind) for kind in PRIORS.kinds()}
    load = lambda name, place: classes[name].from_pretrained(place, local_files_only=True)  # noqa: E731
    return _component(folder, index, "noise_prior", tuple(classes), load)
