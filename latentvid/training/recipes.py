"""What `latentvid train CONFIG` can be asked for: one config model per recipe, each of which builds its task."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import Field, ValidationError, model_validator
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.checkpoints import LARGEST_NUMBER
from latentvid.core.config import StrictModel, load_config, read_tree
from latentvid.core.errors import CheckpointError, UsageError, did_you_mean
from latentvid.core.folder import refuse_links
from latentvid.core.reading import read_json
from latentvid.core.rng import Rng
from latentvid.data.mixture import Latents, Mixture
from latentvid.data.tokenizer import build_tokenizer
from latentvid.data.worlds import open_world
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.metrics.lpips import PerceptualNetwork
from latentvid.noise import PRIORS
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.autoencoder import AutoencoderOptions, AutoencoderTask
from latentvid.training.decoder import DecoderOptions, DecoderTask
from latentvid.training.diffusion import DiffusionOptions, DiffusionTask
from latentvid.training.latent_cache import LatentCache, OnPrepared, build_cache, cache_name
from latentvid.training.loop import RECIPE, LoopConfig, OnRecord, check_folder, is_main_process, saved_states, train
from latentvid.training.pack import open_packed
from latentvid.training.resuming import OnNote, check_settings
from latentvid.training.sources import (
    KeptClips,
    LatentsConfig,
    LatentShardsConfig,
    MixtureConfig,
    SourceConfig,
    WorldConfig,
)
from latentvid.training.task import Task
from latentvid.training.words import WordsOptions, WordsTask

MOST_LAYERS = 64
"""Of one kind in a row."""
Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=LARGEST_NUMBER)], ...],
    Field(min_length=1, max_length=16),
]
"""Channels of each stage."""


class AutoencoderNetwork(StrictModel):
    """Sizes of a diffusers `AutoencoderKL`; each entry of `block_out_channels` after the first halves the picture."""

    block_out_channels: Widths = (16, 32, 64, 96)
    layers_per_block: int = Field(1, ge=1, le=MOST_LAYERS)
    latent_channels: int = Field(4, ge=1, le=LARGEST_NUMBER)
    norm_num_groups: int = Field(8, ge=1)

    def build(self, sample_size: int) -> Any:
        from diffusers import AutoencoderKL

        num_blocks = len(self.block_out_channels)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * num_blocks,
            up_block_types=("UpDecoderBlock2D",) * num_blocks,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            sample_size=sample_size,
            mid_block_add_attention=False,  # so that every picture size is served alike
        )


class AutoencoderRecipe(StrictModel):
    """An image autoencoder from nothing, on stills of the source."""

    kind: Literal["autoencoder"] = "autoencoder"
    source: SourceConfig = WorldConfig(num_frames=2)
    network: AutoencoderNetwork = AutoencoderNetwork()
    options: AutoencoderOptions = AutoencoderOptions()
    loop: LoopConfig = LoopConfig(lr=1e-3)

    def task(self, folder: Path, on_prepared: OnPrepared | None) -> Task:
        vae = self.network.build(self.source.size)
        return AutoencoderTask(vae, KeptClips(self.source.open()), self.options, seed=self.loop.seed)


class UNetSizes(StrictModel):
    """Sizes of the temporal U-Net; every resolution has spatial, text and temporal attention unless left out."""

    block_out_channels: Widths = (64, 128, 160)
    attention: tuple[bool, ...] = (False, True, True)
    """Whether each resolution, from the finest, has transformers."""
    layers_per_block: int = Field(1, ge=1, le=MOST_LAYERS)
    num_heads: int = Field(4, ge=1)
    norm_num_groups: int = Field(16, ge=1)
    temporal_num_convs: int = Field(2, ge=1, le=MOST_LAYERS)

    def build(self, channels: int, sample_size: int, text_width: int) -> TemporalUNet:
        down = tuple("CrossAttnDownBlock2D" if wanted else "DownBlock2D" for wanted in self.attention)
        up = tuple("CrossAttnUpBlock2D" if wanted else "UpBlock2D" for wanted in reversed(self.attention))
        return TemporalUNet(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.block_out_channels,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=self.layers_per_block,
            cross_attention_dim=text_width,
            norm_num_groups=self.norm_num_groups,
            attention_head_dim=self.num_heads,  # diffusers' name for the number of heads
            temporal_num_convs=self.temporal_num_convs,
            temporal_num_heads=self.num_heads,
        )


class TextSizes(StrictModel):
    """Sizes of a small CLIP text encoder trained with the model."""

    width: int = Field(128, ge=8, le=LARGEST_NUMBER)
    num_layers: int = Field(3, ge=1, le=MOST_LAYERS)
    num_heads: int = Field(4, ge=1)
    max_length: int = Field(32, ge=8, le=LARGEST_NUMBER)
    vocab_size: int = Field(1024, ge=514, le=1 << 20)

    def build(self, captions: list[str]) -> tuple[CLIPTokenizer, CLIPTextModel]:
        tokenizer = build_tokenizer(captions, vocab_size=self.vocab_size, max_length=self.max_length)
        marks = {f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
        return tokenizer, CLIPTextModel(self.config(len(tokenizer), **marks))

    def config(self, vocab_size: int, **marks: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            projection_dim=self.width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            max_position_embeddings=self.max_length,
            **marks,
        )


class PriorChoice(StrictModel):
    """A noise prior by kind, with its settings."""

    kind: str = "progressive"
    settings: dict[str, Any] = {}

    def build(self) -> Any:
        try:
            return PRIORS.get(self.kind)(**self.settings)
        except TypeError as error:  # a setting that this kind does not have
            raise UsageError(f"prior {self.kind!r}: {error}.") from error


class DiffusionRecipe(StrictModel):
    """A latent diffusion model on images, videos, or both, in the latent space of a given autoencoder."""

    kind: Literal["diffusion"] = "diffusion"
    vae: str
    """Folder of the autoencoder, which stays as it is."""
    init: str | None = None
    """Pipeline folder to start from: its networks, tokenizer and schedule are taken, sizes below are ignored."""
    videos: LatentsConfig | None = None
    images: LatentsConfig | None = None
    cache: str | None = None
    """Where encoded clips are kept; by default in the run's folder. Sets of clips are known by what this file says of
    them: after a change to footage or captions themselves, delete theirs."""
    prior: PriorChoice = PriorChoice()
    unet: UNetSizes = UNetSizes()
    text: TextSizes = TextSizes()
    shift: float = Field(2.0, gt=0)
    """Flow time shift: larger spends more of training and sampling on noisy levels."""
    fps: float = Field(12.0, gt=0)
    """Written into the pipeline: the rate at which its clips are meant to be seen."""
    given_frames: bool = False
    """Show frames that are to be made the given ones (`temporal.given`); a U-Net that is taken grows the layer."""
    options: DiffusionOptions = DiffusionOptions()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _has_data(self) -> DiffusionRecipe:
        if self.videos is None and self.images is None:
            raise ValueError("name videos, images, or both to train on")
        return self

    def task(self, folder: Path, on_prepared: OnPrepared | None) -> Task:
        vae = load_image_autoencoder(self.vae)
        prepare = _Preparation(vae, self.loop, Path(self.cache or folder / "cache"), on_prepared)
        caches = {
            name: prepare.latents(name, source, num_frames)
            for name, source, num_frames in (
                ("videos", self.videos, self.options.num_frames),
                ("images", self.images, 1),
            )
            if source is not None
        }
        tokenizer, text_encoder, unet, scheduler = self._networks(vae, caches)
        pipeline = LatentVideoPipeline(
            vae=vae,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            noise_prior=self.prior.build(),
            num_frames=self.options.num_frames,
            fps=self.fps,
            overlap_rule=self._overlap_rule(),
        )
        return DiffusionTask(pipeline, caches.get("videos"), caches.get("images"), self.options, seed=self.loop.seed)

    def _overlap_rule(self) -> dict[str, Any] | None:
        """Continue from clean context where the model learns it."""
        if not self.options.context_share or not self.options.video_share:
            return None
        return {"kind": "context", "overlap": min(self.options.max_context, self.options.num_frames - 1)}

    def _networks(self, vae: ImageAutoencoder, caches: dict[str, Latents]) -> tuple[Any, Any, TemporalUNet, Any]:
        if self.init is not None:
            given = LatentVideoPipeline.from_pretrained(self.init)
            return given.tokenizer, given.text_encoder, self._grown(given.unet), given.scheduler
        cache = next(iter(caches.values()))
        captions = [text for held in caches.values() for texts in held.captions for text in texts]
        tokenizer, text_encoder = self.text.build(captions or [""])
        unet = self.unet.build(vae.latent_channels, cache.latents(0).shape[-1], self.text.width)
        return tokenizer, text_encoder, self._grown(unet), FlowMatchEulerDiscreteScheduler(shift=self.shift)

    def _grown(self, unet: TemporalUNet) -> TemporalUNet:
        if unet.config.temporal_given_frames or not self.given_frames:
            return unet
        return TemporalUNet.from_image(unet, temporal_given_frames=True)


class WordsRecipe(StrictModel):
    """Teach a pipeline's text encoder to keep apart the words of a world, and let its U-Net's motion follow them."""

    kind: Literal["words"] = "words"
    init: str
    """Pipeline folder to start from; its U-Net grows the layers that listen to the text (`temporal.advection`)."""
    world: Literal["sky"] = "sky"
    num_captions: int = Field(8000, ge=2)
    options: WordsOptions = WordsOptions()
    loop: LoopConfig = LoopConfig(lr=2e-3)

    def task(self, folder: Path, on_prepared: OnPrepared | None) -> Task:
        captions = list(open_world(self.world).caption_corpus(self.num_captions))
        return WordsTask(self.start(), captions, self.options, seed=self.loop.seed)

    def start(self) -> LatentVideoPipeline:
        """Return the pipeline as it is before training, its U-Net grown."""
        pipeline = LatentVideoPipeline.from_pretrained(self.init)
        if pipeline.unet.text_motion is None:
            pipeline.register_modules(unet=TemporalUNet.from_image(pipeline.unet, temporal_advection=True))
        return pipeline


class DecoderRecipe(StrictModel):
    """The temporal decoder of an image autoencoder, on clips; the encoder stays as it is."""

    kind: Literal["decoder"] = "decoder"
    vae: str
    """Folder of the image autoencoder, or of a temporal one to go on with."""
    source: SourceConfig = WorldConfig(num_clips=512, num_frames=8, size=64)
    held_out: SourceConfig | None = None
    """Clips to validate on; by default the last ones of the source."""
    cache: str | None = None
    """Where encoded clips are kept; by default in the run's folder."""
    temporal_num_convs: int = Field(2, ge=1, le=MOST_LAYERS)
    lpips_trunk: str | None = None
    """Weights of the network that LPIPS looks through; needed where the loss has an lpips term."""
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    options: DecoderOptions = DecoderOptions()
    loop: LoopConfig = LoopConfig(lr=1e-3)

    def task(self, folder: Path, on_prepared: OnPrepared | None) -> Task:
        vae = load_image_autoencoder(self.vae)
        prepare = _Preparation(vae, self.loop, Path(self.cache or folder / "cache"), on_prepared)
        caches = {
            name: prepare.encoded(name, source, keep_pixels=True)
            for name, source in (("clips", self.source), ("held-out", self.held_out))
            if source is not None
        }
        if not isinstance(vae, TemporalAutoencoder):
            vae = TemporalAutoencoder.from_image(vae, temporal_num_convs=self.temporal_num_convs)
        perceptual = None
        if self.lpips_trunk is not None:
            perceptual = PerceptualNetwork(self.lpips_net, trunk=self.lpips_trunk)
        return DecoderTask(
            vae,
            caches["clips"],
            self.options,
            seed=self.loop.seed,
            held_out=caches.get("held-out"),
            perceptual=perceptual,
        )


Recipe = AutoencoderRecipe | DecoderRecipe | DiffusionRecipe | WordsRecipe
RECIPES: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "decoder": DecoderRecipe,
    "diffusion": DiffusionRecipe,
    "words": WordsRecipe,
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's YAML file; its `kind` says which.

    Raises:
        UsageError: the file cannot be read, names no known kind, or does not fit it.
    """
    kind = read_tree(path).get("kind")
    if kind not in RECIPES:
        raise UsageError(f"{path}: kind {kind!r} is no recipe{did_you_mean(str(kind), RECIPES)}")
    return load_config(path, RECIPES[kind], overrides)


@dataclass(frozen=True)
class _Preparation:
    """How a recipe's data becomes latents: by its frozen encoder, in the precision of the training."""

    vae: ImageAutoencoder
    loop: LoopConfig
    folder: Path
    on_prepared: OnPrepared | None

    def latents(self, name: str, source: LatentsConfig, num_frames: int) -> Latents:
        """Return what `source` describes, encoded now or before; `num_frames` are a window's."""
        if isinstance(source, MixtureConfig):
            parts = [self.latents(name, part.source, num_frames) for part in source.parts]
            return Mixture(parts, [part.weight for part in source.parts])
        if isinstance(source, LatentShardsConfig):
            return open_packed(
                source.paths,
                self.vae.latent_space(),
                num_frames=num_frames,
                num_channels=self.vae.latent_channels,
            )
        return self.encoded(name, source)

    def encoded(self, name: str, source: SourceConfig, *, keep_pixels: bool = False) -> LatentCache:
        key = cache_name(source.model_dump_json(), self.vae.latent_space(), self.loop.mixed_precision)
        place = self.folder / f"{name}-{key}"
        refuse_links(self.folder, place)
        return build_cache(source.open(), self._encode, place, keep_pixels=keep_pixels, on_clip=self.on_prepared)

    def _encode(self, video: Tensor) -> Tensor:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.loop.mixed_precision)
        with torch.no_grad(), torch.autocast(self.vae.device.type, half, enabled=half is not None):
            return self.vae.encode_clip(video)


def run(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    on_record: OnRecord | None = None,
    on_prepared: OnPrepared | None = None,
    on_note: OnNote = warnings.warn,
) -> dict[str, Any]:
    """Build the recipe's task and train it into `folder`; return the last log record."""
    folder = Path(folder)
    check_folder(folder, resume=resume)  # before any data is prepared
    refuse_links(folder, folder / "cache")
    if is_main_process():
        _check_recipe(recipe, folder, on_note)
    torch.manual_seed(Rng(recipe.loop.seed).seed_of("weights"))  # networks draw their first weights from it
    task = recipe.task(folder, on_prepared)
    record = recipe.model_dump(mode="json")
    return train(task, recipe.loop, folder, resume=resume, device=device, on_record=on_record, recipe=record)


def _check_recipe(recipe: Recipe, folder: Path, on_note: OnNote) -> None:
    """Refuse to go on with another recipe than a run was begun with, and tell of what changed and may.

    Raises:
        UsageError: as above.
        CheckpointError: the record is damaged.
    """
    now, place, states = recipe.model_dump(mode="json"), folder / RECIPE, saved_states(folder)
    if not states:
        return
    before = read_json(place) if place.is_file() else None
    if before is None and (folder / "loop.json").is_file():  # runs from before recipes were recorded
        before = {**now, "loop": read_json(folder / "loop.json")}
    if before is None:
        return
    if not isinstance(before, dict):
        raise CheckpointError(f"{place} is damaged; start in another folder.")
    # Settings that a run does not know came after it, and their defaults are what it did.
    with suppress(ValidationError, KeyError):
        before = RECIPES[before["kind"]].model_validate(before).model_dump(mode="json")
    taken = {"loop.steps": int(states[-1].name.removeprefix("step-"))}
    for note in check_settings(folder, before, now, taken):
        on_note(f"{folder}: {note}")
