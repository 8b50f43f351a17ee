"""Autoencoders from folders: which class a config names, whether the weights fit, and only then the weights.

A file can name one of our classes and nothing else; sizes are compared with the safetensors header before anything
is allocated; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentvid.autoencoders.base import BaseAutoencoder, numbers
from latentvid.autoencoders.budget import working_bytes
from latentvid.autoencoders.image import IMAGE_NETWORKS, ImageAutoencoder, build_image_network, settings_of
from latentvid.autoencoders.temporal import DELTA_CLASS, DELTA_WEIGHTS, TemporalAutoencoder
from latentvid.autoencoders.video import VIDEO_NETWORKS, VideoAutoencoder, build_video_autoencoder
from latentvid.core.checkpoints import read_settings
from latentvid.core.errors import CheckpointError, LatentVidError
from latentvid.core.headers import inside, read_header
from latentvid.core.places import checkpoints_folder, find_checkpoint
from latentvid.core.runtime import Runtime
from latentvid.core.weights import Weights, building, find_weights, read_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_autoencoder(
    path: str | Path,
    *,
    runtime: Runtime | None = None,
    image_autoencoder: str | Path | ImageAutoencoder | None = None,
    max_memory: int | None = None,
    variant: str | None = None,
) -> BaseAutoencoder:
    """Load an autoencoder for inference: in evaluation mode, without gradients.

    Args:
        path: a folder, or the name of a checkpoint: an image autoencoder's, a temporal one's, a delta's, a diffusers
            video autoencoder's, or a pipeline's (its `vae` is taken).
        runtime: device and dtype; by default the CPU in float32. fp16 is not used for image autoencoders whose config
            says that they overflow in it (`force_upcast`); they run in float32.
        image_autoencoder: what a delta goes on; by default the checkpoint of the name that the delta records.
        max_memory: bytes that this process may hold in all, on the device where that is not the CPU.
        variant: of the weights ("fp16"), where the folder has it; else those without.

    Raises:
        CheckpointError: missing, damaged, of an unknown class, or config and weights do not fit each other.
    """
    folder = component_folder(path)
    config = read_config(folder)
    if config["_class_name"] == DELTA_CLASS:
        autoencoder: BaseAutoencoder = _load_delta(folder, config, image_autoencoder)
    else:
        weights = find_weights(folder, variant)
        tensors = read_weights(weights) if weights.is_pickled else None
        autoencoder = build(config, folder, num_weights=len(tensors or weights.tensors))
        _fill(autoencoder, weights, tensors)
    _check_factors(autoencoder, folder)
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
    return inside(folder, folder / "vae")


def read_config(folder: Path) -> dict[str, Any]:
    """Return an autoencoder folder's config, its class known and its numbers of this world.

    Raises:
        CheckpointError: as above.
    """
    path = folder / "config.json"
    config = read_settings(path)
    kind = config.get("_class_name")
    known = (*IMAGE_NETWORKS.kinds(), *VIDEO_NETWORKS.kinds(), TemporalAutoencoder.__name__, DELTA_CLASS)
    if kind not in known:
        raise CheckpointError(f"{path}: the class {kind!r} is no autoencoder that we load; known: {', '.join(known)}.")
    return config


def build(config: Mapping[str, Any], folder: Path, *, num_weights: int) -> BaseAutoencoder:
    """Make the network that a config describes, without memory for its weights.

    Args:
        num_weights: that there are to fill it; a config that asks for far more is refused before it is followed.

    Raises:
        CheckpointError: the config does not describe a network.
    """
    try:
        with torch.device("meta"), building(2 * num_weights):
            if config["_class_name"] == TemporalAutoencoder.__name__:
                built: BaseAutoencoder = TemporalAutoencoder(**settings_of(TemporalAutoencoder, config))
            elif config["_class_name"] in VIDEO_NETWORKS:
                built = build_video_autoencoder(config)
            else:
                built = ImageAutoencoder(build_image_network(config))
            if isinstance(built, VideoAutoencoder):
                built.check_runs()
        if isinstance(built, ImageAutoencoder):
            _check_runs(built.eval())
    except LatentVidError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    except Exception as error:  # whatever constructors raise at settings that make no network
        raise CheckpointError(f"{folder / 'config.json'} describes no autoencoder ({error}).") from error
    return built


@torch.no_grad()
def _check_runs(autoencoder: ImageAutoencoder) -> None:
    """Send a picture without values through a network without weights: settings can be accepted and still not work."""
    side = 2 * autoencoder.spatial_factor
    latents, _ = autoencoder.posterior(torch.zeros(1, 3, 1, side, side, device="meta"))
    shape = autoencoder.decode_chunk(latents).shape
    if tuple(shape) != (1, 3, 1, side, side):
        raise CheckpointError(f"it turns pictures of {side}x{side} into {list(shape)}.")


def _check_factors(autoencoder: BaseAutoencoder, folder: Path) -> None:
    """Refuse scalings and shifts of latents that cannot be undone.

    Raises:
        CheckpointError: as above.
    """
    try:
        scales, shifts = numbers(autoencoder.scaling_factor), numbers(autoencoder.shift_factor)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: the scaling or shift of its latents is no number ({error}).") from error
    lengths = {len(scales), len(shifts)} <= {1, autoencoder.latent_channels}
    if not lengths or not all(map(math.isfinite, (*scales, *shifts))) or not all(abs(scale) > 0 for scale in scales):
        raise CheckpointError(f"{folder}: its latents cannot be scaled by {scales} and shifted by {shifts}.")


def _fill(autoencoder: BaseAutoencoder, weights: Weights, tensors: dict[str, Tensor] | None) -> None:
    """Give a network without memory its weights, after comparing names and shapes.

    Args:
        tensors: where they have been read already.
    """
    wanted = {name: tuple(value.shape) for name, value in autoencoder.weights.state_dict().items()}
    shapes = {name: shape for name, (_, shape) in weights.tensors.items()}
    if tensors is not None:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    found = {_modern(name): shape for name, shape in shapes.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{weights.place} does not fit its config: {name} has the shape {_shape(found.get(name))} in the file "
                f"and {_shape(wanted.get(name))} in the network."
            )
    tensors = read_weights(weights) if tensors is None else tensors
    autoencoder.weights.load_state_dict({_modern(k): v.float() for k, v in tensors.items()}, assign=True)


def _load_delta(
    folder: Path, config: Mapping[str, Any], image: str | Path | ImageAutoencoder | None
) -> TemporalAutoencoder:
    image = image if image is not None else _recorded(config.get("image_name"))
    if image is None:
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
    path = inside(folder, folder / DELTA_WEIGHTS)
    weights = Weights("", (path,), read_header(path).tensors, is_pickled=False)
    try:
        image = image.without_time()
        with building(len(weights.tensors) + len(image.state_dict())):
            grown = TemporalAutoencoder.from_image(image, **options)
        grown.load_temporal(read_weights(weights))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:  # settings that make no layers
        raise CheckpointError(f"{folder / 'config.json'} describes no temporal layers ({error}).") from error
    return grown


def _recorded(name: Any) -> Path | None:
    """Return the checkpoint that a delta says it goes on: a name among the checkpoints, and never another path."""
    if not isinstance(name, str) or not name:
        return None
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name:
        return None
    return checkpoints_folder() / name


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
