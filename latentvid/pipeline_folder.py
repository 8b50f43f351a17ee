"""Pipeline folders: which classes a `model_index.json` may name, and how each component is read.

diffusers imports whatever module an index names; here a name is looked up in a table, so that a folder can
choose among known classes and run nothing of its own. No file of a folder reaches the libraries: configs are read here,
and what a constructor knows of them is passed on; weights are tensors by then, and attention is what we say it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from pydantic import Field
from tokenizers import AddedToken
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.image import IMAGE_NETWORKS
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.checkpoints import read_settings
from latentvid.core.config import StrictModel, validate
from latentvid.core.errors import CheckpointError, InputError, LatentVidError, UsageError, did_you_mean
from latentvid.core.headers import inside
from latentvid.core.places import find_checkpoint
from latentvid.core.reading import read_json, read_text
from latentvid.core.runtime import Runtime
from latentvid.core.weights import Weights, building, find_weights, read_weights
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.extension.rules import RuleConfig
from latentvid.noise import PRIORS
from latentvid.sampling.schedule import REFUSED, SCHEDULERS, Spacing, build_scheduler, schedule_of

UNETS = {"TemporalUNet": TemporalUNet, "UNet2DConditionModel": UNet2DConditionModel}
LARGEST_WINDOW = 4096
_MOST_STEPS = 1 << 20
"""Of a scheduler, and tokens of a text encoder."""
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_components(
    path: Path, *, runtime: Runtime | None, max_memory: int | None, variant: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a folder's components and its settings, as the pipeline's arguments.

    Raises:
        CheckpointError: see `LatentVideoPipeline.from_pretrained`.
    """
    folder = find_checkpoint(path)
    index = _index(folder)
    settings = _settings(folder, index)
    networks = {
        "vae": (*IMAGE_NETWORKS.kinds(), TemporalAutoencoder.__name__),
        "unet": tuple(UNETS),
        "text_encoder": ("CLIPTextModel",),
    }
    for name, known in networks.items():
        _named(folder, index, name, known)
    weights = {name: _weights(folder, name, variant) for name in networks}
    if variant is not None and variant not in {found.variant for found in weights.values()}:
        raise CheckpointError(f"{folder} holds no weights of the variant {variant!r}.")
    components = {
        "vae": load_image_autoencoder(folder, runtime=runtime, max_memory=max_memory, variant=weights["vae"].variant),
        "unet": _component(folder, index, "unet", networks["unet"], _unet, weights["unet"]),
        "text_encoder": _component(
            folder, index, "text_encoder", networks["text_encoder"], _text_encoder, weights["text_encoder"]
        ),
        "tokenizer": _component(folder, index, "tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"), _tokenizer),
        "scheduler": _component(
            folder, index, "scheduler", (*SCHEDULERS, *REFUSED), partial(_scheduler, spacing=settings["spacing"])
        ),
        "noise_prior": _noise_prior(folder, index),
    }
    _check_fit(folder, components)
    return components, settings


def _weights(folder: Path, name: str, variant: str | None) -> Weights:
    """Return where a component's weights lie: those of the variant, or else those without one."""
    place = inside(folder, folder / name)
    if not place.is_dir():
        raise CheckpointError(f"{place} is missing.")
    try:
        return find_weights(place, variant)
    except CheckpointError:
        if variant is None:
            raise
        return find_weights(place)


def _check_fit(folder: Path, components: dict[str, Any]) -> None:
    """Refuse components that do not fit each other; bound prompts to what the text encoder takes.

    Raises:
        CheckpointError: as above.
    """
    tokenizer, text = components["tokenizer"], components["text_encoder"].config
    if max(tokenizer.get_vocab().values(), default=0) >= text.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has more tokens than the {text.vocab_size} of its text encoder."
        )
    if components["unet"].config.cross_attention_dim != text.hidden_size:
        raise CheckpointError(
            f"{folder}: its text encoder gives {text.hidden_size} numbers per token, and its U-Net takes "
            f"{components['unet'].config.cross_attention_dim}."
        )
    channels, others = components["vae"].latent_channels, components["unet"].config.in_channels
    if channels != others:
        raise CheckpointError(f"{folder}: its vae has {channels} channels, and its U-Net takes {others}.")
    tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)


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
        index = read_json(inside(folder, folder / "model_index.json"))
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
    folder: Path,
    index: dict[str, Any],
    name: str,
    known: Sequence[str],
    load: Callable[..., Any],
    *weights: Weights,
) -> Any:
    kind, place = _named(folder, index, name, known), inside(folder, folder / name)
    if not place.is_dir():
        raise CheckpointError(f"{place} is missing.")
    try:
        return load(kind, place, *weights)
    except CheckpointError:
        raise
    except LatentVidError as error:
        raise CheckpointError(f"{place}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # diffusers, transformers and their Rust libraries each have their own
        is_panic = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_panic or "can't allocate memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{place} cannot be loaded: {reason}") from error


def _known(network: type, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that a constructor knows."""
    known = inspect.signature(network.__init__).parameters  # type: ignore[misc]
    return {k: v for k, v in config.items() if k in known and not k.startswith("_")}


def _unet(name: str, place: Path, weights: Weights) -> TemporalUNet:
    network = UNETS[name]
    config = read_settings(place / "config.json")
    known = network._get_init_keys(network)
    tensors = read_weights(weights)
    with torch.device("meta"), building(len(tensors)):
        unet = network(**{k: v for k, v in config.items() if k in known and not k.startswith("_")}).eval()
    _check_runs(unet)
    wanted = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    _check_whole(wanted, tensors, place)
    unet.load_state_dict({k: v.float() for k, v in tensors.items() if k in wanted}, assign=True)
    if any(value.is_meta for value in (*unet.parameters(), *unet.buffers())):
        raise CheckpointError(f"{place}: a U-Net of this kind has values that no file holds; it is not run here.")
    return unet if isinstance(unet, TemporalUNet) else TemporalUNet.from_image(unet)


@torch.no_grad()
def _check_runs(unet: UNet2DConditionModel) -> None:
    """Send a clip of one frame without values through a network without weights.

    Raises:
        CheckpointError: the config is of a network that takes and gives other things than we have.
    """
    size, channels = unet.config.sample_size, unet.config.in_channels
    sides = size if isinstance(size, list | tuple) else (size, size)
    if size is not None and not (len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)):
        raise CheckpointError(f"its sample_size is {size!r}.")
    side = 2 ** len(unet.config.block_out_channels)
    with torch.device("meta"):
        shape = (1, channels, 1, side, side) if isinstance(unet, TemporalUNet) else (1, channels, side, side)
        level = torch.zeros(1, 1) if isinstance(unet, TemporalUNet) else torch.zeros(1)
        out = unet(torch.zeros(shape), level, torch.zeros(1, 2, unet.config.cross_attention_dim))
    made = out if isinstance(out, torch.Tensor) else out.sample
    if tuple(made.shape) != shape:
        raise CheckpointError(f"its U-Net turns {list(shape)} into {list(made.shape)}.")


def _text_encoder(name: str, place: Path, weights: Weights) -> CLIPTextModel:
    config = read_settings(place / "config.json", largest=_MOST_STEPS)
    config = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if config.get("hidden_act", "quick_gelu") not in _ACTIVATIONS:
        raise CheckpointError(f"{place}: the activation {config['hidden_act']!r} is not known.")
    known = {name for name in inspect.get_annotations(CLIPTextConfig) if not name.startswith("_")}
    known -= {"model_type", "base_config_key"}
    settings = CLIPTextConfig(**{k: v for k, v in config.items() if k in known}, attn_implementation="sdpa")
    # Older files have the names of the model that the text encoder is a part of.
    tensors = {k.removeprefix("text_model."): v for k, v in read_weights(weights).items()}
    with torch.device("meta"), building(len(tensors)):
        wanted = {k: tuple(v.shape) for k, v in CLIPTextModel(settings).state_dict().items()}
    _check_whole(wanted, tensors, place)
    encoder, found = CLIPTextModel.from_pretrained(
        None,
        config=settings,
        state_dict={k: v.float() for k, v in tensors.items() if k in wanted},
        attn_implementation="sdpa",
        dtype=torch.float32,
        output_loading_info=True,
    )
    for key in sorted(found["missing_keys"]):
        raise CheckpointError(f"{place} lacks the weight {key}.")
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 1, dtype=torch.int64))  # settings can be accepted and still not work
    return encoder


def _check_whole(wanted: dict[str, tuple[int, ...]], tensors: dict[str, torch.Tensor], place: Path) -> None:
    """Refuse weights that the file lacks (the libraries would draw them at random), and those of another shape."""
    for key, shape in wanted.items():
        if key not in tensors:
            raise CheckpointError(f"{place} lacks the weight {key}.")
        if tuple(tensors[key].shape) != shape:
            raise CheckpointError(
                f"{place}: the weight {key} has the shape {list(tensors[key].shape)}, and its config wants "
                f"{list(shape)}."
            )


def _tokenizer(name: str, place: Path) -> CLIPTokenizer:
    """Make a tokenizer of a folder's vocabulary: from `tokenizer.json`, or from `vocab.json` and `merges.txt`."""
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (place / file).is_file():
            settings |= read_json(inside(place, place / file))
    if (place / "tokenizer.json").is_file():
        data = read_json(inside(place, place / "tokenizer.json"))
        vocab, merges = data["model"]["vocab"], data["model"]["merges"]
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
        added = {token["id"]: token for token in data.get("added_tokens") or ()}
    else:
        vocab = read_json(inside(place, place / "vocab.json"))
        lines = read_text(inside(place, place / "merges.txt"), max_bytes=1 << 26).split("\n")
        pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines if line and not line.startswith("#version")]
        added = {}
    added |= {int(key): token for key, token in (settings.get("added_tokens_decoder") or {}).items()}
    length = settings.get("model_max_length", 77)
    return CLIPTokenizer(
        vocab=vocab,
        merges=pairs,
        model_max_length=min(int(length), _MOST_STEPS),
        added_tokens_decoder={number: _added_token(token) for number, token in sorted(added.items())},
        **{role: _special(settings[role], added) for role in _SPECIAL if settings.get(role) is not None},
    )


def _special(token: Any, added: dict[int, dict[str, Any]]) -> AddedToken:
    """Return a token that a config names, or spells out, as it is among the added ones."""
    content = token["content"] if isinstance(token, dict) else str(token)
    for other in added.values():
        if other["content"] == content:
            return _added_token(other)
    return _added_token(token if isinstance(token, dict) else {"content": content, "normalized": False})


def _added_token(token: dict[str, Any]) -> AddedToken:
    options = {k: bool(token[k]) for k in ("single_word", "lstrip", "rstrip", "normalized") if k in token}
    return AddedToken(str(token["content"]), special=bool(token.get("special", True)), **options)


def _scheduler(name: str, place: Path, *, spacing: Spacing) -> Any:
    path = place / "scheduler_config.json"
    # The least that a logarithm of signal over noise may be is written as minus infinity.
    config = read_settings(path, largest=_MOST_STEPS, may_be_infinite=("lambda_min_clipped",))
    scheduler = build_scheduler(name, config)
    schedule = schedule_of(scheduler, spacing)  # what cannot be read is refused here
    if spacing == "even":
        schedule.levels(1)
    return scheduler


def _noise_prior(folder: Path, index: dict[str, Any]) -> Any:
    if "noise_prior" not in index:
        return PRIORS.get("iid")()  # an image model's
    classes = {PRIORS.get(kind).__name__: PRIORS.get(kind) for kind in PRIORS.kinds()}

    def load(name: str, place: Path) -> Any:
        return classes[name](**_known(classes[name], read_settings(place / classes[name].config_name)))

    return _component(folder, index, "noise_prior", tuple(classes), load)
