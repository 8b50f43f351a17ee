"""Pipeline folders: which classes a `model_index.json` may name, and how each component is read.

diffusers imports whatever module an index names; here a name is looked up in a table, so that a folder can
choose among known classes and run nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.load import load_autoencoder
from latentvid.core.errors import CheckpointError, InputError, did_you_mean
from latentvid.core.files import read_json
from latentvid.core.places import find_checkpoint
from latentvid.core.registry import Registry
from latentvid.core.runtime import Runtime
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.noise import PRIORS

SCHEDULERS = Registry(
    "scheduler",
    {
        name: f"diffusers:{name}"
        for name in (
            "DDIMScheduler",
            "DDPMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
            "PNDMScheduler",
        )
    },
)
SETTINGS = ("num_frames", "fps", "overlap_rule")
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
    components = {
        "vae": load_autoencoder(folder, runtime=runtime, max_memory=max_memory),
        "unet": _component(folder, index, "unet", _unet),
        "text_encoder": _component(folder, index, "text_encoder", _text_encoder),
        "tokenizer": _component(folder, index, "tokenizer", _tokenizer),
        "scheduler": _component(folder, index, "scheduler", _scheduler),
        "noise_prior": _component(folder, index, "noise_prior", _prior) if "noise_prior" in index else _independent(),
    }
    settings = {name: index[name] for name in SETTINGS if name in index}
    if not 1 <= int(settings.get("num_frames", 1)) <= LARGEST_WINDOW:
        raise CheckpointError(f"{folder}: num_frames={settings['num_frames']} is out of range.")
    return components, settings


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = read_json(folder / "model_index.json")
    except InputError as error:
        raise CheckpointError(f"{folder} is no pipeline: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{folder / 'model_index.json'} is no table of components.")
    return index


def _component(folder: Path, index: dict[str, Any], name: str, load: Callable[[str, Path], Any]) -> Any:
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        raise CheckpointError(f"{folder / 'model_index.json'} names no {name}.")
    place = folder / name
    if not place.is_dir():
        raise CheckpointError(f"{place} is missing.")
    try:
        return load(entry[1], place)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors each have their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{place} cannot be loaded: {reason}") from error


def _known(name: str, *known: str) -> None:
    if name not in known:
        raise CheckpointError(f"the class {name!r} is not known here{did_you_mean(name, known)}")


def _unet(name: str, place: Path) -> TemporalUNet:
    _known(name, "TemporalUNet", "UNet2DConditionModel")
    network = TemporalUNet if name == "TemporalUNet" else UNet2DConditionModel
    unet = network.from_pretrained(place, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32)
    return unet if isinstance(unet, TemporalUNet) else TemporalUNet.from_image(unet)


def _text_encoder(name: str, place: Path) -> CLIPTextModel:
    _known(name, "CLIPTextModel")
    return CLIPTextModel.from_pretrained(place, local_files_only=True, use_safetensors=True, dtype=torch.float32)


def _tokenizer(name: str, place: Path) -> CLIPTokenizer:
    _known(name, "CLIPTokenizer", "CLIPTokenizerFast")
    return CLIPTokenizer.from_pretrained(place, local_files_only=True)


def _scheduler(name: str, place: Path) -> Any:
    _known(name, *SCHEDULERS.kinds())
    return SCHEDULERS.get(name).from_pretrained(place, local_files_only=True)


def _prior(name: str, place: Path) -> Any:
    classes = {PRIORS.get(kind).__name__: PRIORS.get(kind) for kind in PRIORS.kinds()}
    _known(name, *classes)
    return classes[name].from_pretrained(place, local_files_only=True)


def _independent() -> Any:
    return PRIORS.get("iid")()
