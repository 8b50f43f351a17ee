"""What making a film costs besides its networks: memory from window to window, and where the time goes.

Three films are made of each model. One is left alone but for events around the networks, which do not wait for the
device: its wall time, its memory after every window, and when its first window could be watched. A short one waits for
the device wherever one kind of work begins or ends, so that each kind has its own time. Another short one is profiled.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import latentvid.core.files
import latentvid.extension.rollout
import latentvid.film.complete
import latentvid.film.generate
import latentvid.film.make
import latentvid.film.runs
from latentvid.core.runtime import resolve_runtime
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.guard import Guard
from latentvid.film.make import Maker
from latentvid.film.preview import Preview
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.recipes import AutoencoderNetwork, PriorChoice, TextSizes, UNetSizes
from latentvid.video.writer import VideoWriter
from scripts.gpu.measure import Bench
from scripts.gpu.network_costs import large_unet

ROOT = Path(__file__).resolve().parents[2]
SKY = ROOT / "checkpoints" / "sky"
PROMPT = "scattered clouds, slow wind to the left, over hills at dusk"


def film_sky(bench: Bench) -> dict[str, Any]:
    """A film of 1,000 frames by the shipped model."""
    if bench.is_tiny or not SKY.is_dir():
        pipeline = _pipeline(bench, _small_unet(), text_width=32)
    else:
        runtime = resolve_runtime(str(bench.device), "bf16" if bench.is_cuda else "fp32")
        pipeline = LatentVideoPipeline.from_pretrained(SKY, runtime=runtime)
    return _film(bench, pipeline, "film_sky", frames=bench.pick(1000, 20), short=bench.pick(96, 14), steps=4)


def film_large(bench: Bench) -> dict[str, Any]:
    """Films of a U-Net of Stable Diffusion's size behind a small autoencoder, 256x256."""
    unet = _small_unet() if bench.is_tiny else large_unet(bench)
    unet.to(memory_format=torch.contiguous_format)
    pipeline = _pipeline(bench, unet, text_width=unet.config.cross_attention_dim)
    size = bench.pick(256, None)
    return _film(
        bench, pipeline, "film_large", frames=bench.pick(100, 14), short=bench.pick(40, 8), steps=10, size=size
    )


def _film(
    bench: Bench,
    pipeline: LatentVideoPipeline,
    name: str,
    *,
    frames: int,
    short: int,
    steps: int,
    size: int | None = None,
) -> dict[str, Any]:
    steps = bench.pick(steps, 2)
    found: dict[str, Any] = {"num_frames": frames, "steps": steps, "lines": []}
    bench.kept[f"{name}.partial"] = found
    folder = bench.out / name
    folder.mkdir(parents=True, exist_ok=True)

    def make(label: str, count: int, **more: Any) -> float:
        start = time.perf_counter()
        options: dict[str, Any] = {"num_frames": count, "num_inference_steps": steps, "seed": 1}
        options |= {"overwrite": True, "keep_run": False}
        generate_film(pipeline, PROMPT, folder / f"{label}.mp4", height=size, width=size, **options, **more)
        bench.sync()
        return time.perf_counter() - start

    make("short", 1)  # libraries are loaded and kernels chosen before anything counts
    with _watched(bench, pipeline) as watch:
        wall = make("film", frames, contact_sheet=folder / "film.png")
    found |= _of_the_whole(watch, wall)
    flat = "flat" if found["is_memory_flat"] else "NOT FLAT"
    found["lines"] += [
        f"{frames} frames in {wall:.1f} s ({found['seconds_per_window']:.3f} s a window), first window to watch after "
        f"{found['first_window_s']:.2f} s",
        f"outside the networks: {found['share_outside']:.1%} of windows, {found['share_outside_all']:.1%} of all; "
        f"memory after windows {found['memory_bytes'][2:3]} to {found['memory_bytes'][-1:]}: {flat}",
    ]
    with _phases(bench, pipeline) as phases:
        wall = make("short", short)
    phases.seconds["other"] = wall - sum(phases.seconds.values())
    found["phases"] = {
        "num_frames": short,
        "wall_s": wall,
        "seconds": phases.seconds,
        "calls": phases.calls,
        "not_found": phases.missing,
    }
    parts = sorted(phases.seconds.items(), key=lambda pair: -pair[1])
    found["lines"].append(
        "; ".join(f"{part} {seconds / wall:.1%}" for part, seconds in parts if seconds > 0.004 * wall)
    )
    profiler = cProfile.Profile()
    profiler.runcall(make, "short", short)
    text = io.StringIO()
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler, stream=text).sort_stats(order).print_stats(45)
    (bench.out / f"{name}_profile.txt").write_text(text.getvalue(), encoding="utf-8")
    bench.kept.pop(f"{name}.partial", None)
    return found


class _Watch:
    """Events around networks, in the order of the device's work, and what held after every window."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.spans: list[tuple[Any, Any]] = []
        self.memory: list[int] = []
        self.times: list[float] = []
        self.began = time.perf_counter()
        self.first_shown = 0.0
        self.loop = 0.0
        self._start: Any = None

    def mark(self) -> Any:
        if not self.bench.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, *_: Any) -> None:
        self._start = self.mark()

    def leave(self, *_: Any) -> None:
        self.spans.append((self._start, self.mark()))

    def inside(self) -> float:
        """Return the seconds in all networks; the device must have finished."""
        if self.bench.is_cuda:
            return sum(start.elapsed_time(end) for start, end in self.spans) / 1000
        return sum(end - start for start, end in self.spans)


@contextmanager
def _watched(bench: Bench, pipeline: LatentVideoPipeline) -> Iterator[_Watch]:
    watch = _Watch(bench)

    def around(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        watch.enter()
        try:
            return call(*given, **more)
        finally:
            watch.leave()

    def commit(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        result = call(*given, **more)
        watch.memory.append(torch.cuda.memory_allocated() if bench.is_cuda else 0)
        watch.times.append(time.perf_counter() - watch.began)
        return result

    def show(call: Callable[..., Any], preview: Any, count: int, **more: Any) -> Any:
        result = call(preview, count, **more)
        if count and not watch.first_shown:
            watch.first_shown = time.perf_counter() - watch.began
        return result

    def loop(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
        start = time.perf_counter()
        result = call(*given, **more)
        watch.loop = time.perf_counter() - start
        return result

    with ExitStack() as stack:
        for network in (pipeline.unet, pipeline.text_encoder):
            stack.callback(network.register_forward_pre_hook(watch.enter).remove)
            stack.callback(network.register_forward_hook(watch.leave).remove)
        for owner, name, wrapper in (
            (pipeline.autoencoder, "decode_chunk", around),  # called by its method, not as a module
            (RunFolder, "commit", commit),
            (Preview, "show", show),
            (Maker, "make", loop),
        ):
            _wrap(stack, owner, name, wrapper)
        yield watch


def _of_the_whole(watch: _Watch, wall: float) -> dict[str, Any]:
    inside, memory = watch.inside(), watch.memory
    settled = memory[2:] or memory
    windows = [later - earlier for earlier, later in zip(watch.times, watch.times[1:], strict=False)]
    return {
        "wall_s": wall,
        "loop_s": watch.loop,
        "inside_networks_s": inside,
        "share_outside": 1 - inside / watch.loop if watch.loop else 0.0,
        "share_outside_all": 1 - inside / wall,
        "seconds_per_window": sorted(windows)[len(windows) // 2] if windows else wall,
        "first_window_s": watch.first_shown,
        "num_windows": len(memory),
        "memory_bytes": memory,
        "is_memory_flat": len(set(settled)) <= 1,
    }


class _Phases:
    """Time by kind of work; work inside other work counts for itself only."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.missing: list[str] = []
        self._stack: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        """Book the time since the last turn on what is at work."""
        self.bench.sync()
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    def around(self, kind: str) -> Callable[..., Any]:
        def wrapper(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
            self._turn()
            self._stack.append(kind)
            self.calls[kind] = self.calls.get(kind, 0) + 1
            try:
                return call(*given, **more)
            finally:
                self._turn()
                self._stack.pop()

        return wrapper


@contextmanager
def _phases(bench: Bench, pipeline: LatentVideoPipeline) -> Iterator[_Phases]:
    phases = _Phases(bench)
    places: list[tuple[Any, str, str]] = [
        (pipeline.text_encoder, "forward", "text"),
        (pipeline.unet, "forward", "U-Net"),
        (latentvid.extension.rollout, "make_window", "sampling around the U-Net"),
        (pipeline.autoencoder, "decode_chunk", "decoder"),
        (LatentVideoPipeline, "decode_window", "decoding around the decoder"),
        (torch.Tensor, "cpu", "copies to the host"),
        (VideoWriter, "__enter__", "video encoding"),
        (VideoWriter, "write", "video encoding"),
        (VideoWriter, "_finish", "video encoding"),
        (Maker, "write", "writing around the encoding"),
        (RunFolder, "hashes", "hashing"),
        (latentvid.core.files, "sync", "file sync"),
        (latentvid.core.files, "_sync_folder", "file sync"),
        (Guard, "correct", "guard"),
        (Guard, "judge", "guard"),
        (latentvid.film.make, "measure", "drift curves"),
        (latentvid.film.make, "save_carry", "carry"),
        (RunFolder, "commit", "record"),
        (Preview, "show", "preview"),
        (latentvid.film.runs, "weights_of", "hashing of weights"),
        (latentvid.film.complete, "finish_run", "joining the film"),
    ]
    with ExitStack() as stack:
        for owner, name, kind in places:
            if not hasattr(owner, name):
                phases.missing.append(name)
                continue
            _wrap(stack, owner, name, phases.around(kind))
        yield phases


def _wrap(stack: ExitStack, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Let `wrapper(call, *arguments)` stand for a function of a module, a class or an object, until the stack ends."""
    call = getattr(owner, name)

    def wrapped(*given: Any, **more: Any) -> Any:
        return wrapper(call, *given, **more)

    own = name in vars(owner)
    before = vars(owner).get(name)
    set_, delete = (setattr, delattr) if isinstance(owner, type) or not hasattr(owner, "__dict__") else (_set, _delete)
    set_(owner, name, wrapped)
    stack.callback(*((set_, owner, name, before) if own else (delete, owner, name)))


def _set(owner: Any, name: str, value: Any) -> None:
    object.__setattr__(owner, name, value)  # networks and pipelines have opinions of what is set on them


def _delete(owner: Any, name: str) -> None:
    object.__delattr__(owner, name)


def _small_unet() -> Any:
    return UNetSizes(block_out_channels=(16, 32), attention=(False, True), norm_num_groups=8).build(4, 8, 32)


def _pipeline(bench: Bench, unet: Any, *, text_width: int) -> LatentVideoPipeline:
    """Return a pipeline of random weights around a U-Net."""
    from latentvid.autoencoders.temporal import TemporalAutoencoder

    widths = bench.pick((24, 48, 96, 96), (8, 16))
    vae = TemporalAutoencoder.from_image(AutoencoderNetwork(block_out_channels=widths, norm_num_groups=8).build(32))
    sizes = TextSizes(width=text_width, num_layers=bench.pick(6, 1), num_heads=bench.pick(8, 2))
    tokenizer, text_encoder = sizes.build([PROMPT])
    for network in (vae, text_encoder, unet):
        torch.nn.Module.to(network, bench.device, bench.dtype)
        network.requires_grad_(False).eval()
    return LatentVideoPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        noise_prior=PriorChoice().build(),
        num_frames=bench.pick(16, 8),
        fps=12.0,
        overlap_rule={"kind": "reuse", "overlap": bench.pick(4, 2)},
    )
