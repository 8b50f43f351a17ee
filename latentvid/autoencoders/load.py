"""Autoencoders from folders: which class a config names, whether the weights fit, and only then the weights.

A file can name one of our classes and nothing else; sizes are compared with the safetensors header before anything
is allocated; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latentvid.autoencoders.base import BaseAutoencoder
from latentvid.autoencoders.budget import working_bytes
from latentvid.autoencoders.image import IMAGE_NETWORKS, ImageAutoencoder, build_image_network
from latentvid.autoencoders.temporal import DELTA_CLASS, DELTA_WEIGHTS, TemporalAutoencoder
from latentvid.autoencoders.video import VIDEO_NETWORKS, build_video_autoencoder
from latentvid.core.checkpoints import read_header
from latentvid.core.errors import CheckpointError, InputError, LatentVidError
from latentvid.core.files import read_json
from latentvid.core.places import find_checkpoint
from latentvid.core.runtime import Runtime

WEIGHTS = "diffusion_pytorch_model.safetensors"
LARGEST_NUMBER = 1 << 14
"""No width, count or size in an autoencoder's config is larger; one that is would take the machine down."""
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_autoencoder(
    path: str | Path,
    *,
    runtime: Runtime | None = None,
    image_autoencoder: str | Path | ImageAutoencoder | None = None,
    max_memory: int | None = None,
) -> BaseAutoencoder:
    """Load an autoencoder for inference: in evaluation mode, without gradients.

    Args:
        path: a folder, or the name of a checkpoint: an image autoencoder's, a temporal one's, a delta's, a diffusers
            video autoencoder's, or a pipeline's (its `vae` is taken).
        runtime: device and dtype; by default the CPU in float32. fp16 is not used for image autoencoders whose config
            says that they overflow in it (`force_upcast`); they run in float32.
        image_autoencoder: what a delta goes on; by default the checkpoint of the name that the delta records.
        max_memory: bytes that this process may hold in all, on the device where that is not the CPU.

    Raises:
        CheckpointError: missing, damaged, of an unknown class, or config and weights do not fit each other.
    """
    folder = component_folder(path)
    config = read_config(folder)
    if config["_class_name"] == DELTA_CLASS:
        autoencoder: BaseAutoencoder = _load_delta(folder, config, image_autoencoder)
    else:
        autoencoder = build(config, folder)
        _fill(autoencoder, _weights_file(folder))
    autoencoder.name = _name(folder)
    autoencoder.requires_grad_(False).eval()
    if runtime is not None:
        upcast = autoencoder.force_upcast and runtime.dtype is torch.float16
        dtype = torch.float32 if upcast else runtime.dtype
        if dtype is not torch.float32:
            autoencoder.loaded_space = autoencoder.latent_space()
        nn.Module.to(autoencoder, runtime.device, dtype)
    if max_memory is not None:
        autoencoder.max_memory = working_bytes(max_memory, autoencoder.device)
    return autoencoder


def load_image_autoencoder(path: str | Path, **options: Any) -> ImageAutoencoder:
    """Like `load_autoencoder`, for what needs an autoencoder whose latents are frames: training, generation.

    Raises:
        CheckpointError: as there, or it is a video autoencoder of another architecture.
    """
    autoencoder = load_autoencoder(path, **options)
    if not isinstance(autoencoder, ImageAutoencoder):
        raise CheckpointError(
            f"{path} is a {type(autoencoder).__name__}, which encodes and decodes but cannot be trained or generated "
            "with; name an AutoencoderKL, an AutoencoderTiny or a TemporalAutoencoder."
        )
    return autoencoder


def component_folder(path: str | Path) -> Path:
    """Return the folder of the autoencoder that `path` means: itself, or a pipeline's `vae`.

    Raises:
        CheckpointError: there is none.
    """
    folder = find_checkpoint(path)
    if not (folder / "model_index.json").is_file():
        return folder
    if not (folder / "vae" / "config.json").is_file():
        raise CheckpointError(f"{folder} is a pipeline without a vae folder; name an autoencoder.")
    return folder / "vae"


def read_config(folder: Path) -> dict[str, Any]:
    """Return an autoencoder folder's config, its class known and its numbers of this world.

    Raises:
        CheckpointError: as above.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    kind = config.get("_class_name") if isinstance(config, dict) else None
    known = (*IMAGE_NETWORKS.kinds(), *VIDEO_NETWORKS.kinds(), TemporalAutoencoder.__name__, DELTA_CLASS)
    if kind not in known:
        raise CheckpointError(f"{path}: the class {kind!r} is no autoencoder that we load; known: {', '.join(known)}.")
    _check_numbers(config, path)
    return config


def build(config: Mapping[str, Any], folder: Path) -> BaseAutoencoder:
    """Make the network that a config describes, without memory for its weights.

    Raises:
        CheckpointError: the config does not describe a network.
    """
    try:
        with torch.device("meta"):
            if config["_class_name"] == TemporalAutoencoder.__name__:
                return TemporalAutoencoder(**{k: v for k, v in config.items() if not k.startswith("_")})
            if config["_class_name"] in VIDEO_NETWORKS:
                return build_video_autoencoder(config)
            return ImageAutoencoder(build_image_network(config))
    except LatentVidError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # whatever constructors raise at settings that make no network
        raise CheckpointError(f"{folder / 'config.json'} describes no autoencoder ({error}).") from error


def _fill(autoencoder: BaseAutoencoder, path: Path) -> None:
    """Give a network without memory its weights, after comparing names and shapes."""
    wanted = {name: tuple(value.shape) for name, value in autoencoder.weights.state_dict().items()}
    found = {_modern(name): shape for name, (_, shape) in read_header(path).tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{path} does not fit its config: {name} has the shape {_shape(found.get(name))} in the file and "
                f"{_shape(wanted.get(name))} in the network."
            )
    weights = {_modern(name): tensor.float() for name, tensor in _load(path).items()}
    autoencoder.weights.load_state_dict(weights, assign=True)


def _load_delta(
    folder: Path, config: Mapping[str, Any], image: str | Path | ImageAutoencoder | None
) -> TemporalAutoencoder:
    image = image if image is not None else str(config.get("image_name") or "")
    if image == "":
        raise CheckpointError(f"{folder} holds temporal layers only; name the image autoencoder that they go on.")
    if not isinstance(image, ImageAutoencoder):
        try:
            image = load_image_autoencoder(image)
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder} holds temporal layers only and needs its image autoencoder: {error}"
            ) from error
    if config.get("image_weights_hash") != image.image_weights():
        raise CheckpointError(f"{folder} was trained on another image autoencoder than {image.name or 'this one'}.")
    options = {k: config[k] for k in ("temporal_num_convs", "temporal_dropout") if k in config}
    grown = TemporalAutoencoder.from_image(image.without_time(), **options)
    path = folder / DELTA_WEIGHTS
    read_header(path)
    try:
        grown.load_temporal(_load(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return grown


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error}).") from error


def _weights_file(folder: Path) -> Path:
    """Return the one safetensors file of a component; variants such as `.fp16.safetensors` count."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{folder} holds {len(found)} safetensors files and none is called {WEIGHTS}.")
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt"))
    why = "only pickled weights, which can run code; convert them to safetensors" if pickled else "no weights"
    raise CheckpointError(f"{folder} holds {why}.")


def _check_numbers(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if len(value) > LARGEST_NUMBER:
            raise CheckpointError(f"{path}: a list of {len(value)} entries is no autoencoder's.")
        for item in value:
            _check_numbers(item, path)
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise CheckpointError(f"{path}: the number {value} is no size of an autoencoder.")


def _modern(name: str) -> str:
    """Return the present name of an attention weight that old checkpoints call otherwise."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1 and parts[-2] in _OLD_NAMES:
        parts[-2] = _OLD_NAMES[parts[-2]]
    return ".".join(parts)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _name(folder: Path) -> str:
    """Return a folder's name, with its pipeline's in front where it is a pipeline's `vae`."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if (folder.parent / "model_index.json").is_file() else folder.name
