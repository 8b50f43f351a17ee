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
from latentvid.training.decoder import DecoderTask
from latentvid.training.finetune import FinetuneConfig, build_task, check_fits
from latentvid.training.held_out import Footage

EVALUATE_SHARE = 0.75
"""Time to encode and decode a pixel, as a share of that to train on one; measured on a CPU."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take on this machine, by one timed step."""

    steps: int
    step_s: float
    prepare_s: float
    evaluate_s: float
    memory_bytes: int
    """At its peak, on the device where that is not the CPU."""
    disk_bytes: int

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.steps * self.step_s + self.evaluate_s

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
    network = load_image_autoencoder(vae)
    check_fits(config, network)
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
    most = config.max_eval_frames
    measured = sum(min(c.num_frames, most or c.num_frames) * c.height * c.width for c in footage.held_out)
    evaluate_s = 2 * EVALUATE_SHARE * step_s * 3 * measured / (batch * pixels * config.loop.accumulate)
    return Estimate(config.loop.steps, step_s, clip_s * config.num_clips, evaluate_s, memory, kept + 3 * states)


def _step(task: DecoderTask, data: dict[str, torch.Tensor], precision: str) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    device = data["latents"].device.type
    with torch.autocast(device, half, enabled=half is not None):
        loss, _ = task(data)
    loss.backward()
