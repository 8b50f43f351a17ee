"""What a film will take, told before it is made: windows, memory, disk and time, from one timed step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentvid.autoencoders.latent_file import HEADER_BYTES
from latentvid.core.errors import ResourceError
from latentvid.core.memory import format_bytes, free_memory, peak_rss_bytes
from latentvid.extension.rules import ReuseRule
from latentvid.film.extend import INVERSION_CALLS
from latentvid.pipeline import LatentVideoPipeline, Sampling

BYTES_PER_PIXEL = 0.2
"""Of H.264 at crf 18, noisy pictures; smooth ones take a tenth of it."""
LIVE_TENSORS = 4
"""Tensors of the largest size that a U-Net holds at its peak, at least."""
PROCESS_BYTES = 75 << 20
"""What libraries take on their first use, measured with two small models."""
ENCODER_BYTES_PER_PIXEL = 100
"""Some 50 pictures that H.264 looks ahead, and the queue in front of it."""
WINDOW_FILES_BYTES = HEADER_BYTES + 16_384
"""What a window's files take besides latents and pictures."""


@dataclass(frozen=True, slots=True)
class FilmEstimate:
    """Bytes, seconds and counts; measured where "measured" is said, reckoned elsewhere."""

    num_frames: int
    num_windows: int
    window: int
    overlap: int
    width: int
    height: int
    num_calls: int
    """Denoiser calls in all."""
    weights_bytes: int
    working_bytes: int
    """Measured, besides the weights: the most that a step or a decoding took."""
    host_bytes: int
    """Reckoned: what encoder and libraries take of the host's memory besides."""
    disk_bytes: int
    """Of the run folder, its preview and the film together."""
    seconds: float
    step_seconds: float
    """Measured: one denoiser call."""
    decode_seconds: float
    """Measured: decoding of one window."""
    free_memory_bytes: int
    """On the model's device, before anything was tried."""
    free_disk_bytes: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Refuse what does not fit.

        Raises:
            ResourceError: memory or disk does not suffice; the sentence says what would.
        """
        needed = self.working_bytes + (self.host_bytes if self.device == "cpu" else 0)
        if needed > self.free_memory_bytes:
            share = self.free_memory_bytes / needed
            side = int(min(self.width, self.height) * share**0.5)
            raise ResourceError(
                f"a window of {self.window} frames of {self.width}x{self.height} takes "
                f"{format_bytes(needed)} and {format_bytes(self.free_memory_bytes)} are free on "
                f"{self.device}; about {side} pixels on the shorter side would fit."
            )
        if self.disk_bytes > self.free_disk_bytes:
            frames = int(self.num_frames * self.free_disk_bytes / self.disk_bytes)
            raise ResourceError(
                f"{self.num_frames} frames take about {format_bytes(self.disk_bytes)} of disk and "
                f"{format_bytes(self.free_disk_bytes)} are free; about {frames} frames would fit."
            )


def estimate_film(
    pipeline: LatentVideoPipeline,
    out: str | Path,
    num_frames: int,
    sampling: Sampling,
    *,
    is_extension: bool = False,
    shown_pixels: int | None = None,
) -> FilmEstimate:
    """Return what a film would take; one step and one decoding are really done, on a window of noise.

    Args:
        out: where it would go.
        num_frames: frames that the model makes.
        sampling: how, from `pipeline.sampling()`.
        is_extension: a clip is continued, and inverted first where the rule asks for it.
        shown_pixels: of a frame in the film, where that is not the model's own size.
    """
    plan = pipeline.plan(num_frames, sampling, given=sampling.rule.overlap if is_extension else 0)
    device, latent = pipeline.unet.device, sampling.latent
    free = free_memory(device)
    noise = torch.randn(latent.dims, device=device)
    with torch.no_grad():
        with _largest_output(pipeline.unet) as largest:
            first_step_s, step_bytes = _measured(_step(pipeline, sampling, noise, continues=is_extension), device)
            step_s = first_step_s
            if not is_extension and sampling.guidance(continues=True) != sampling.guidance(continues=False):
                step_s, more_bytes = _measured(_step(pipeline, sampling, noise, continues=True), device)
                step_bytes = max(step_bytes, more_bytes)
        # An allocator that held memory before grows by less than it would have to in a process of its own.
        step_bytes = max(step_bytes, LIVE_TENSORS * largest[0])
        decode = lambda: list(pipeline.autoencoder.decode([noise[0]]))  # noqa: E731
        decode_s, decode_bytes = _measured(decode, device)
    num_calls: float = plan.num_windows * sampling.num_calls
    sampling_s = sampling.num_calls * (first_step_s + (plan.num_windows - 1) * step_s)
    if is_extension and isinstance(sampling.rule, ReuseRule):
        guided = 2 if sampling.guidance(continues=True) != 1 else 1
        inversion_calls = INVERSION_CALLS * sampling.num_steps / guided
        num_calls += inversion_calls
        sampling_s += inversion_calls * step_s
    factor = pipeline.autoencoder.spatial_factor
    height, width = latent.height * factor, latent.width * factor
    picture = shown_pixels or height * width
    per_frame = 4 * latent.channels * latent.height * latent.width + 3 * BYTES_PER_PIXEL * picture
    return FilmEstimate(
        num_frames=num_frames,
        num_windows=plan.num_windows,
        window=plan.window,
        overlap=plan.overlap,
        width=width,
        height=height,
        num_calls=round(num_calls),
        weights_bytes=sum(_bytes(m) for m in (pipeline.unet, pipeline.autoencoder, pipeline.text_encoder)),
        working_bytes=max(step_bytes, decode_bytes) + _carry_bytes(sampling),
        host_bytes=PROCESS_BYTES + ENCODER_BYTES_PER_PIXEL * picture,
        disk_bytes=round(num_frames * per_frame + plan.num_windows * WINDOW_FILES_BYTES + 2 * _carry_bytes(sampling)),
        seconds=round(sampling_s + plan.num_windows * decode_s, 3),
        step_seconds=step_s,
        decode_seconds=decode_s,
        free_memory_bytes=free,
        free_disk_bytes=shutil.disk_usage(_existing(Path(out))).free,
        device=str(device),
    )


def _step(pipeline: LatentVideoPipeline, sampling: Sampling, noise: Tensor, *, continues: bool) -> Callable[[], Tensor]:
    """Return one denoiser call of a window."""
    setting = pipeline.setting(sampling, [""], continues=continues)
    return lambda: setting.denoise(noise, setting.levels[0])


@contextmanager
def _largest_output(network: nn.Module) -> Iterator[list[int]]:
    """Note, in the list's one place, the bytes of the largest tensor that a layer puts out."""
    largest = [0]

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest[0] = max(largest[0], output.numel() * output.element_size())

    hooks = [module.register_forward_hook(note) for module in network.modules() if not list(module.children())]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _measured(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Return the seconds of `work` once it is warm, and the bytes that it took at its peak."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
        before = _resident()
    work()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, max(0, peak - before)


def _forget_peak() -> None:
    """Let the kernel count this process's peak afresh, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _carry_bytes(sampling: Sampling) -> int:
    overlap = sampling.latent.with_frames(sampling.rule.overlap).num_bytes
    if not isinstance(sampling.rule, ReuseRule):
        return overlap
    return sampling.latent.num_bytes + (sampling.num_steps + 1) * overlap


def _existing(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    for folder in path.resolve().parents:
        if folder.is_dir():
            return folder
    return Path.cwd()
