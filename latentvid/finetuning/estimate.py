"""What a finetuning would take on this machine, told before it is started."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.core.errors import ResourceError
from latentvid.core.memory import format_bytes, free_memory, peak_rss_bytes
from latentvid.core.runtime import Runtime
from latentvid.finetuning.config import FinetuneConfig, Stage
from latentvid.finetuning.footage import Footage
from latentvid.finetuning.run import build_task, check_fits, long_enough
from latentvid.training.decoder import DecoderTask

EVALUATE_SHARE = 0.75
"""Time to encode and decode a pixel, as a share of that to train on one; measured on a CPU."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take on this machine, by one timed step of each stage."""

    steps: int
    train_s: float
    prepare_s: float
    evaluate_s: float
    memory_bytes: int
    """At its peak, on the device where that is not the CPU."""
    disk_bytes: int

    @property
    def step_s(self) -> float:
        return self.train_s / self.steps

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.train_s + self.evaluate_s

    def check_memory(self, device: torch.device) -> None:
        """Raise ResourceError where less is free than is needed."""
        free = free_memory(device)
        if self.memory_bytes > free:
            raise ResourceError(
                f"a run needs about {format_bytes(self.memory_bytes)} and {format_bytes(free)} are free; use a smaller "
                "--crop, --clip-frames or --batch."
            )


@dataclass(frozen=True, slots=True)
class _Needs:
    """What one stage would take."""

    step_s: float
    pixels_per_step: int
    clip_s: float
    """To prepare one crop."""
    memory_bytes: int
    kept_bytes: int
    """Of prepared crops."""
    state_bytes: int


def estimate(config: FinetuneConfig, vae: str | Path, footage: Footage, *, runtime: Runtime) -> Estimate:
    """Prepare one batch of each stage and take one step, untimed, and another, timed; nothing is kept.

    Raises:
        UsageError: the settings do not fit the autoencoder or the footage.
        CheckpointError: there is no such autoencoder.
    """
    network = load_image_autoencoder(vae)
    check_fits(config, network, footage)
    plan = config.plan()
    needs = [_needs(config, stage, vae, footage, runtime=runtime) for stage in plan]
    # Stages of equal clips share their crops.
    crops = {stage.options.num_frames: (stage, found) for stage, found in zip(plan, needs, strict=True)}
    most = config.max_eval_frames
    measured = sum(min(c.num_frames, most or c.num_frames) * c.height * c.width for c in footage.held_out)
    return Estimate(
        steps=sum(stage.loop.steps for stage in plan),
        train_s=sum(stage.loop.steps * found.step_s for stage, found in zip(plan, needs, strict=True)),
        prepare_s=sum(stage.num_clips * found.clip_s for stage, found in crops.values()),
        evaluate_s=2 * EVALUATE_SHARE * 3 * measured * needs[0].step_s / needs[0].pixels_per_step,
        memory_bytes=max(found.memory_bytes for found in needs),
        disk_bytes=sum(found.kept_bytes for _, found in crops.values()) + sum(4 * found.state_bytes for found in needs),
    )


def _needs(config: FinetuneConfig, stage: Stage, vae: str | Path, footage: Footage, *, runtime: Runtime) -> _Needs:
    network = load_image_autoencoder(vae)
    options, accumulate = stage.options, stage.loop.accumulate
    small = replace(stage, num_clips=options.batch, num_validation_clips=1)
    one = replace(footage, held_out=long_enough(footage.held_out, options.num_frames)[:1])
    cuda = runtime.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        task = build_task(config, small, network, one, Path(scratch), runtime=runtime).to(runtime.device)
        clip_s = (time.monotonic() - start) / (options.batch + 1)
        clips = max((task.batch(index) for index in range(5)), key=lambda batch: batch["video"].shape[1])  # no stills
        data = {name: tensor.to(runtime.device) for name, tensor in clips.items()}
    if task.adversary is not None:
        task.adversary.is_on.fill_(True)  # as it will be for most of the run
    for _ in range(2):
        start = time.monotonic()
        _step(task, data, stage.loop.mixed_precision)
        if cuda:
            torch.cuda.synchronize(runtime.device)
        step_s = (time.monotonic() - start) * accumulate
    pixels = 3 * options.num_frames * config.crop**2
    latents = 4 * options.num_frames * network.latent_channels * (config.crop // network.spatial_factor) ** 2
    kept = (stage.num_clips + stage.num_validation_clips) * (pixels + latents)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    states = 4 * trained * 4  # two moments, the average, and its copy, in float32
    memory = torch.cuda.max_memory_allocated(runtime.device) + states if cuda else peak_rss_bytes() + states + kept
    return _Needs(step_s, options.batch * pixels * accumulate, clip_s, memory, kept, states)


def _step(task: DecoderTask, data: dict[str, torch.Tensor], precision: str) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    device = data["latents"].device.type
    task.begin_step(0)
    with torch.autocast(device, half, enabled=half is not None):
        for player in task.players(lr=1.0):
            for batch in [data] if player.batches is None else player.batches():
                task(batch)[0].backward()
