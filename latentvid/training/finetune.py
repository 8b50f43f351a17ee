"""Finetuning an image decoder in time on the user's own footage: from files to a trained decoder in a folder.

The folder holds the finished autoencoder; `run/` in it is the training run, which can be resumed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_autoencoder
from latentvid.autoencoders.losses import ReconstructionWeights
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel
from latentvid.core.errors import InputError, ResourceError, UsageError
from latentvid.core.files import read_json, sha256_of, write_json
from latentvid.core.memory import format_bytes, free_memory, peak_rss_bytes
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime
from latentvid.data.footage import ClipInfo, scan
from latentvid.metrics.lpips import PerceptualNetwork
from latentvid.training.crops import NativeCrops
from latentvid.training.decoder import DecoderOptions, DecoderTask
from latentvid.training.image_guard import Guarded, guard_images, image_decoder_of
from latentvid.training.latent_cache import LatentCache, build_cache, cache_name
from latentvid.training.loop import LoopConfig, OnRecord, train
from latentvid.training.recipes import OnPrepared

HELD_OUT_SHARE = 6
"""Every how many files one is held out where nobody says."""
LPIPS_WEIGHT = 0.1
"""Where a trunk is given and no weight."""
RUN, SETTINGS = "run", "settings.json"


class FinetuneLoss(ReconstructionWeights):
    """Squared errors and flicker weigh more than in general: both are what time can mend."""

    mse: float = Field(4.0, ge=0)
    temporal: float = Field(1.0, ge=0)


class FinetuneOptions(DecoderOptions):
    """Clips a little longer: a causal decoder gains from every frame of past that it has learned to use."""

    num_frames: int = Field(12, ge=2)
    loss: FinetuneLoss = FinetuneLoss()


class FinetuneLoop(LoopConfig):
    """A high rate and a short average: the new layers start at zero and are small."""

    steps: int = Field(1500, ge=1)
    lr: float = Field(2e-3, gt=0)
    warmup: int = Field(50, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(100, ge=1)
    validate_every: int = Field(250, ge=1)


class FinetuneConfig(StrictModel):
    """Everything about a finetuning but the footage and the autoencoder."""

    kind: Literal["finetune"] = "finetune"
    crop: int = Field(64, ge=16)
    """Height and width of the training crops in pixels; a multiple of the autoencoder's spatial factor."""
    strides: list[int] = Field([1], min_length=1)
    """Every n-th frame, one of these at random per crop."""
    num_clips: int = Field(960, ge=1)
    """Crops that are drawn, encoded once and trained on."""
    num_validation_clips: int = Field(12, ge=1)
    """Crops of the held-out files for the figures in the log."""
    temporal_num_convs: int = Field(2, ge=1)
    lpips_trunk: str | None = None
    """Weights of the network that LPIPS looks through; gives the loss an lpips term."""
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    options: FinetuneOptions = FinetuneOptions()
    loop: FinetuneLoop = FinetuneLoop()


@dataclass(frozen=True, slots=True)
class Footage:
    """Files to train on, files to measure on, and the others with the reason why they are left out."""

    train: tuple[ClipInfo, ...]
    held_out: tuple[ClipInfo, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def describe(self) -> dict[str, Any]:
        return {
            "train": [_about(clip) for clip in self.train],
            "held_out": [_about(clip) for clip in self.held_out],
            "skipped": [{"file": path.name, "why": why} for path, why in self.skipped],
        }


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What came of it, in memory."""

    autoencoder: TemporalAutoencoder
    image: ImageAutoencoder
    """What it was before: the same without temporal layers, its spatial weights as they came."""
    guard: Guarded
    has_delta: bool
    """Whether the temporal layers alone make the model out of the image autoencoder."""
    validation: dict[str, float]
    """Figures of the last validation, on crops."""


def find_footage(
    paths: Sequence[str | Path],
    config: FinetuneConfig,
    *,
    held_out: Sequence[str | Path] = (),
    num_held_out: int | None = None,
) -> Footage:
    """Look at every file and part the usable ones; whole files are held out, never crops.

    Args:
        paths: files, folders, patterns.
        held_out: the same; without them the last `num_held_out` files of `paths` (about one in six).

    Raises:
        InputError: a path does not exist, or nothing usable is left.
        UsageError: too few files to hold one out.
    """
    found, skipped = _usable(paths, config)
    if held_out:
        kept, unusable = _usable(held_out, config)
        skipped += unusable
    else:
        count = num_held_out or max(1, round(len(found) / HELD_OUT_SHARE))
        if count >= len(found):
            raise UsageError(
                f"{len(found)} usable clips with {count} held out leave none to train on; give more footage, or "
                "held-out footage with --val."
            )
        found, kept = found[:-count], found[-count:]
    twins = _twins(found, kept)
    skipped += [(clip.path, f"{clip.path}: the same file as {twin}, which is held out.") for clip, twin in twins]
    found = [clip for clip in found if clip not in [c for c, _ in twins]]
    if not found:
        raise InputError(f"no footage is left to train on; the first reason: {skipped[0][1]}")
    return Footage(tuple(found), tuple(kept), tuple(skipped))


def check_folder(folder: Path, config: FinetuneConfig, vae: str, footage: Footage, *, resume: bool) -> None:
    """Make sure that `folder` is new, or holds this very run where it is to be resumed; write down its settings.

    Raises:
        UsageError: as above.
    """
    path = folder / RUN / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder.")
    settings = {
        "vae": vae,
        "config": config.model_dump(mode="json"),
        "train": [str(clip.path.resolve()) for clip in footage.train],
        "held_out": [str(clip.path.resolve()) for clip in footage.held_out],
    }
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} exists and holds something else than a run; name another folder.")
        write_json(path, settings)
        return
    if not resume:
        raise UsageError(f"{folder} exists and holds a run; pass --resume to go on with it, or name another folder.")
    before = read_json(path)
    changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
    if changed:
        raise UsageError(
            f"{folder} was started with another {changed[0].replace('_', '-')}; resume it with the same settings and "
            "files, or start in another folder."
        )


def finetune(
    config: FinetuneConfig,
    vae: str | Path,
    footage: Footage,
    folder: str | Path,
    *,
    runtime: Runtime,
    resume: bool = False,
    on_prepared: OnPrepared | None = None,
    on_record: OnRecord | None = None,
) -> Finetuned:
    """Train, guard single frames, and write the autoencoder and its delta into `folder`.

    Raises:
        UsageError: the folder is taken, or the settings do not fit the autoencoder.
        CheckpointError: there is no such autoencoder, or no such trunk.
        KeyboardInterrupt: with the state saved; `resume` goes on.
    """
    folder = Path(folder)
    network = load_autoencoder(vae)
    _check_fits(config, network)
    check_folder(folder, config, str(vae), footage, resume=resume)
    base = network
    if isinstance(network, TemporalAutoencoder):
        base = image_decoder_of(network)
    run = folder / RUN
    task = build_task(config, network, footage, run / "cache", runtime=runtime, on_prepared=on_prepared)
    train(
        task,
        config.loop,
        run,
        resume=resume,
        device="cpu" if runtime.device.type == "cpu" else "auto",
        on_record=on_record,
    )
    exported = load_autoencoder(run / "export")
    assert isinstance(exported, TemporalAutoencoder)
    for autoencoder in (base, exported):
        nn.Module.to(autoencoder, runtime.device)
    exported.name = base.name
    guard = guard_images(exported, base, [clip.path for clip in footage.held_out])
    has_delta = exported.image_weights() == base.image_weights()
    write_autoencoder(exported, folder, has_delta=has_delta)
    validation = read_json(run / "export" / "metrics.json")["held_out"]
    return Finetuned(exported, base, guard, has_delta, validation)


def build_task(
    config: FinetuneConfig,
    network: ImageAutoencoder,
    footage: Footage,
    cache: Path,
    *,
    runtime: Runtime,
    on_prepared: OnPrepared | None = None,
) -> DecoderTask:
    """Encode crops of the footage into `cache` and return what is to be trained on them."""
    seed, options = config.loop.seed, config.options
    nn.Module.to(network, runtime.device)
    caches = {}
    for name, clips, count in (
        ("train", footage.train, config.num_clips),
        ("held-out", footage.held_out, config.num_validation_clips),
    ):
        crops = NativeCrops(
            clips,
            num_clips=count,
            num_frames=options.num_frames,
            size=config.crop,
            strides=config.strides,
            seed=seed,
            name=name,
        )
        files = [(str(c.path.resolve()), c.path.stat().st_size) for c in clips]
        key = cache_name(files, count, options.num_frames, config.crop, config.strides, seed, network.latent_space())
        caches[name] = _cached(crops, network, cache / f"{name}-{key}", on_prepared if name == "train" else None)
    torch.manual_seed(Rng(seed).seed_of("weights"))  # the new layers draw their first weights from it
    if isinstance(network, TemporalAutoencoder):
        grown = network
    else:
        grown = TemporalAutoencoder.from_image(network, temporal_num_convs=config.temporal_num_convs)
    perceptual = None
    if config.lpips_trunk is not None:
        perceptual = PerceptualNetwork(config.lpips_net, trunk=config.lpips_trunk)
        if not options.loss.lpips:
            loss = options.loss.model_copy(update={"lpips": LPIPS_WEIGHT})
            options = options.model_copy(update={"loss": loss})
    return DecoderTask(grown, caches["train"], options, seed=seed, held_out=caches["held-out"], perceptual=perceptual)


def write_autoencoder(autoencoder: TemporalAutoencoder, folder: Path, *, has_delta: bool) -> None:
    """Write a folder that `from_pretrained` reads, with the temporal layers alone in `delta/` where they are enough."""
    autoencoder.save_pretrained(folder)
    if has_delta:
        autoencoder.save_delta(folder / "delta")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take on this machine, by one timed step."""

    steps: int
    step_s: float
    prepare_s: float
    memory_bytes: int
    """At its peak, on the device where that is not the CPU."""
    disk_bytes: int

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.steps * self.step_s

    def check_memory(self, device: torch.device) -> None:
        """Raise ResourceError where less is free than is needed."""
        free = free_memory(device)
        if self.memory_bytes > free:
            raise ResourceError(
                f"a run needs about {format_bytes(self.memory_bytes)} and {format_bytes(free)} are free; use a smaller "
                "--crop, --clip-frames or --batch."
            )


def estimate(config: FinetuneConfig, vae: str | Path, footage: Footage, *, runtime: Runtime) -> Estimate:
    """Prepare one batch and take one step, untimed, and another, timed; nothing is kept."""
    network = load_autoencoder(vae)
    _check_fits(config, network)
    batch = config.options.batch
    small = config.model_copy(update={"num_clips": batch, "num_validation_clips": 1})
    one = replace(footage, held_out=footage.held_out[:1])
    cuda = runtime.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        task = build_task(small, network, one, Path(scratch), runtime=runtime)
        clip_s = (time.monotonic() - start) / (batch + 1)
        data = {name: tensor.to(runtime.device) for name, tensor in task.batch(0).items()}
    for _ in range(2):
        start = time.monotonic()
        _step(task, data, config.loop.mixed_precision)
        if cuda:
            torch.cuda.synchronize(runtime.device)
        step_s = (time.monotonic() - start) * config.loop.accumulate
    pixels = 3 * config.options.num_frames * config.crop**2
    latents = 4 * config.options.num_frames * network.latent_channels * (config.crop // network.spatial_factor) ** 2
    kept = (config.num_clips + config.num_validation_clips) * (pixels + latents)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    states = 4 * trained * 4  # two moments, the average, and its copy, in float32
    memory = torch.cuda.max_memory_allocated(runtime.device) + states if cuda else peak_rss_bytes() + states + kept
    return Estimate(config.loop.steps, step_s, clip_s * config.num_clips, memory, kept + 3 * states)


def _step(task: DecoderTask, data: dict[str, torch.Tensor], precision: str) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    device = data["latents"].device.type
    with torch.autocast(device, half, enabled=half is not None):
        loss, _ = task(data)
    loss.backward()


def _cached(crops: NativeCrops, network: ImageAutoencoder, folder: Path, on_prepared: OnPrepared | None) -> LatentCache:
    return build_cache(crops, network.encode_clip, folder, keep_pixels=True, on_clip=on_prepared)


def _usable(paths: Sequence[str | Path], config: FinetuneConfig) -> tuple[list[ClipInfo], list[tuple[Path, str]]]:
    found, skipped = scan(paths, min_frames=config.options.num_frames)
    small = [clip for clip in found if min(clip.height, clip.width) < config.crop]
    skipped += [
        (clip.path, f"{clip.path}: {clip.width}x{clip.height} pixels, and crops of {config.crop} are wanted.")
        for clip in small
    ]
    found = [clip for clip in found if clip not in small]
    if not found:
        raise InputError(f"none of {len(skipped)} clips can be used. The first: {skipped[0][1]}")
    return found, skipped


def _twins(train: Sequence[ClipInfo], held_out: Sequence[ClipInfo]) -> list[tuple[ClipInfo, Path]]:
    """Return training clips whose bytes are those of a held-out clip, under whatever name."""
    sizes: dict[int, list[Path]] = {}
    for clip in held_out:
        sizes.setdefault(clip.path.stat().st_size, []).append(clip.path)
    return [
        (clip, twin)
        for clip in train
        for twin in sizes.get(clip.path.stat().st_size, [])
        if sha256_of(clip.path) == sha256_of(twin)
    ]


def _check_fits(config: FinetuneConfig, network: ImageAutoencoder) -> None:
    if config.crop % network.spatial_factor:
        raise UsageError(
            f"crops of {config.crop} pixels do not fit the autoencoder; use a multiple of {network.spatial_factor}."
        )


def _about(clip: ClipInfo) -> dict[str, Any]:
    return {"file": clip.path.name, "num_frames": clip.num_frames, "height": clip.height, "width": clip.width}
