"""Finetuning an image decoder in time on footage: from files to a trained decoder in a folder.

A run for each stage, which starts from what the one before exported; all of them can be resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import UsageError
from latentvid.core.folder import Folder
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime
from latentvid.data.footage import ClipInfo
from latentvid.finetuning.config import FinetuneConfig, Stage
from latentvid.finetuning.folder import RUN, StageDone, check_folder, folder_of, is_done, stage_done, staged_in
from latentvid.finetuning.footage import Footage
from latentvid.finetuning.guard import Guarded, guard_images
from latentvid.metrics.lpips import PerceptualNetwork
from latentvid.training.crops import GAMMA, HUE, LEVELS, SATURATION, NativeCrops
from latentvid.training.decoder import DecoderTask
from latentvid.training.latent_cache import LatentCache, OnPrepared, build_cache, cache_name
from latentvid.training.loop import LAYOUT as RUN_LAYOUT
from latentvid.training.loop import OnRecord, is_main_process, main_process_first, train
from latentvid.training.resuming import OnNote

LPIPS_WEIGHT = 0.1
"""Where a trunk is given and no weight."""


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What came of it, in memory."""

    autoencoder: TemporalAutoencoder
    image: ImageAutoencoder
    """What it was before: the same without temporal layers, its spatial weights as they came."""
    guard: Guarded
    stages: tuple[StageDone, ...]


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
    on_note: OnNote = warnings.warn,
) -> Finetuned:
    """Train, guard single frames, and write the autoencoder and its delta into `folder`.

    Under torchrun all processes train, on batches of their own, and the main one does the rest.

    Raises:
        UsageError: the folder is taken, or the settings do not fit the autoencoder.
        CheckpointError: there is no such autoencoder, or no such trunk.
        ResourceError: another process is working in the folder.
        KeyboardInterrupt: with the state saved; `resume` goes on.
    """
    folder = Path(folder)
    network = load_image_autoencoder(vae)
    check_fits(config, network, footage)
    device = "cpu" if runtime.device.type == "cpu" else "auto"
    if is_main_process():
        check_folder(folder, config, str(vae), footage, resume=resume, on_note=on_note)
    files = folder_of(folder)
    with files.held() if is_main_process() else nullcontext():
        base = network.without_time()
        run, done = folder / RUN, []
        for stage in config.plan():
            Folder(run / stage.name, RUN_LAYOUT).check()
            if not is_done(config, stage, run):
                with main_process_first(device):
                    task = build_task(
                        config,
                        stage,
                        network,
                        footage,
                        run / "cache",
                        runtime=runtime,
                        image=base,
                        on_prepared=on_prepared,
                    )
                _train(task, stage, run, device=device, resume=resume, on_record=on_record)
            done.append(stage_done(stage, run / stage.name))
            network = load_image_autoencoder(run / stage.name / "export")
        assert isinstance(network, TemporalAutoencoder)
        return _finished(network, base, footage, files, runtime, tuple(done))


def _finished(
    exported: TemporalAutoencoder,
    base: ImageAutoencoder,
    footage: Footage,
    files: Folder,
    runtime: Runtime,
    done: tuple[StageDone, ...],
) -> Finetuned:
    """Guard single frames, and write the autoencoder and its delta."""
    for autoencoder in (base, exported):
        nn.Module.to(autoencoder, runtime.device)
    exported.name = base.name
    guard = guard_images(exported, base, [clip.path for clip in footage.held_out], reading=footage.held_out[0].reading)
    if is_main_process():
        with staged_in(files) as staged:
            exported.save_with_delta(staged)
    return Finetuned(exported, base, guard, done)


def _train(
    task: DecoderTask, stage: Stage, run: Path, *, device: str, resume: bool, on_record: OnRecord | None
) -> None:
    def report(record: dict[str, Any]) -> None:
        if on_record is not None:
            on_record({"stage": stage.name, **record})

    train(task, stage.loop, run / stage.name, resume=resume, device=device, on_record=report)


def build_task(
    config: FinetuneConfig,
    stage: Stage,
    network: ImageAutoencoder,
    footage: Footage,
    cache: Path,
    *,
    runtime: Runtime,
    image: ImageAutoencoder | None = None,
    on_prepared: OnPrepared | None = None,
) -> DecoderTask:
    """Encode crops of the footage into `cache` and return what is to be trained on them.

    Args:
        image: what single frames are guarded by; by default what `network` is now.
    """
    seed, options = stage.loop.seed, stage.options
    nn.Module.to(network, runtime.device)
    caches = {}
    for name, clips, count in (
        ("train", footage.train, stage.num_clips),
        ("held-out", footage.held_out, stage.num_validation_clips),
    ):
        clips = long_enough(clips, options.num_frames)
        crops = NativeCrops(
            clips,
            num_clips=count,
            num_frames=options.num_frames,
            size=config.crop,
            strides=config.strides,
            vary=config.vary and name == "train",
            seed=seed,
            name=name,
        )
        files = [(str(c.path.resolve()), c.path.stat().st_size) for c in clips]
        variation = [("varied", GAMMA, LEVELS, SATURATION, HUE)] if crops.vary else []
        key = cache_name(
            files, count, options.num_frames, config.crop, config.strides, seed, network.latent_space(), *variation
        )
        caches[name] = _cached(crops, network, cache / f"{name}-{key}", on_prepared if name == "train" else None)
    is_whole = all((clip.height, clip.width) == (config.crop, config.crop) for clip in footage.train)
    options = options.model_copy(update={"border": 0 if is_whole else min(config.border, config.crop // 4)})
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
    return DecoderTask(
        grown,
        caches["train"],
        options,
        seed=seed,
        held_out=caches["held-out"],
        perceptual=perceptual,
        image=image,
    )


def _cached(crops: NativeCrops, network: ImageAutoencoder, folder: Path, on_prepared: OnPrepared | None) -> LatentCache:
    return build_cache(crops, network.encode_clip, folder, keep_pixels=True, on_clip=on_prepared)


def long_enough(clips: Sequence[ClipInfo], num_frames: int) -> tuple[ClipInfo, ...]:
    """Return the clips that crops of that many frames can be cut from."""
    return tuple(clip for clip in clips if clip.num_frames >= num_frames)


def check_fits(config: FinetuneConfig, network: ImageAutoencoder, footage: Footage) -> None:
    """Raise UsageError where the settings, the autoencoder and the footage do not go together."""
    if config.crop % network.spatial_factor:
        raise UsageError(
            f"crops of {config.crop} pixels do not fit the autoencoder; use a multiple of {network.spatial_factor}."
        )
    for stage in config.plan():
        frames = stage.options.num_frames
        for name, clips in (("to train on", footage.train), ("held out", footage.held_out)):
            if not long_enough(clips, frames):
                raise UsageError(
                    f"stage {stage.name}: none of the clips {name} has {frames} frames; give longer footage, or lower "
                    f"{'' if stage.name == 'temporal' else stage.name + '.'}options.num_frames."
                )
