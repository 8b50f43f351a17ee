"""What single networks cost: a temporal U-Net of Stable Diffusion 1.5's size, and decoders of its autoencoder's."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch._dynamo.utils
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.temporal.context import StreamState
from latentvid.temporal.inject import temporal_parameters
from scripts.gpu.measure import Bench

CLIP_FRAMES = 16
BACKENDS = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION],  # which lacks some widths of heads
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
}


def large_unet(bench: Bench) -> TemporalUNet:
    """Return a temporal U-Net grown on Stable Diffusion 1.5's config, with random weights; kept for the next item."""
    if "unet" not in bench.kept:
        config: dict[str, Any] = {
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": bench.pick((320, 640, 1280, 1280), (8, 16)),
            "down_block_types": (*("CrossAttnDownBlock2D",) * bench.pick(3, 1), "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * bench.pick(3, 1)),
            "layers_per_block": bench.pick(2, 1),
            "cross_attention_dim": bench.pick(768, 16),
            "attention_head_dim": bench.pick(8, 2),
            "norm_num_groups": bench.pick(32, 4),
            "temporal_num_heads": bench.pick(8, 2),
        }
        with torch.device(bench.device):
            unet = TemporalUNet(**config)
        bench.kept["unet"] = _awake(unet).to(bench.dtype)
    return bench.kept["unet"]


def unet_inputs(bench: Bench, size: int, clips: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return three sets of noisy latents [b c t h w], timesteps [b] and text [b l d] for pictures of `size` pixels."""
    side, frames = bench.pick(size // 8, 8), bench.pick(CLIP_FRAMES, 2)
    width = large_unet(bench).config.cross_attention_dim
    return [
        (
            bench.random(clips, 4, frames, side, side),
            torch.randint(1, 1000, (clips,), device=bench.device).float(),
            bench.random(clips, bench.pick(77, 4), width),
        )
        for _ in range(3)
    ]


@torch.no_grad()
def unet_variants(bench: Bench, size: int) -> dict[str, Any]:
    """Time a guided step, two clips of 16 frames, in several ways; shares are of the measured matrix product."""
    unet = large_unet(bench)
    both, single = unet_inputs(bench, size, 2), unet_inputs(bench, size, 1)
    with FlopCounterMode(display=False) as counter:
        unet(*both[0])
    flops = counter.get_total_flops()
    found: dict[str, Any] = {"size": size, "flops": flops, "ways": {}, "lines": []}
    bench.kept[f"unet_{size}.partial"] = found

    def note(way: str, call: Callable[[Any], Any], inputs: list[Any], calls: int = 1) -> None:
        try:
            seconds = bench.seconds_of(call, inputs, limit_s=1.2) * calls
        except RuntimeError as error:
            found["ways"][way] = {"error": str(error).splitlines()[0][:200]}
            found["lines"].append(f"{size} {way:22} not here: {str(error).splitlines()[0][:60]}")
            return
        share = bench.share(flops, seconds)
        found["ways"][way] = {"seconds": seconds, "tflops": flops / seconds / 1e12, "share": share}
        found["lines"].append(
            f"{size} {way:22} {seconds * 1e3:8.2f} ms {flops / seconds / 1e12:6.1f} TFLOP/s {share:6.1%}"
        )

    def plain(given: Any) -> Tensor:
        return unet(*given)

    note("eager", plain, both)
    with bench.peak() as peak:
        unet(*both[0])
        bench.sync()
        found["peak_bytes"] = peak()
    note("guidance apart", plain, single, calls=2)
    for name, backends in BACKENDS.items():
        with sdpa_kernel(backends, set_priority=True):
            note(f"attention {name}", plain, both)
    with ExitStack() as stack:
        torch.backends.cudnn.benchmark = True
        stack.callback(setattr, torch.backends.cudnn, "benchmark", False)
        note("cudnn.benchmark", plain, both)
        unet.to(memory_format=torch.channels_last)
        stack.callback(unet.to, memory_format=torch.contiguous_format)
        note("channels last, bench.", plain, both)
        torch.backends.cudnn.benchmark = False
        note("channels last", plain, both)
        if bench.is_cuda:  # last: a recording that fails may leave the device in disorder
            recorded: list[Any] = []

            def replay(given: Any) -> Tensor:
                recorded[:] = recorded or [_graph(unet, both[0])]
                return recorded[0](given)

            note("channels last, graph", replay, both)
    bench.kept.pop(f"unet_{size}.partial", None)
    return found


def _graph(unet: TemporalUNet, example: tuple[Tensor, ...]) -> Callable[[Any], Tensor]:
    """Record a call as a CUDA graph, which shows what launching kernels one by one costs."""
    held = [x.clone() for x in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            unet(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = unet(*held)

    def replay(given: tuple[Tensor, ...]) -> Tensor:
        for mine, new in zip(held, given, strict=True):
            mine.copy_(new)
        graph.replay()
        return out

    return replay


@torch.no_grad()
def unet_profile(bench: Bench, size: int) -> dict[str, Any]:
    """Write the kernels that one eager step spends its time in to `unet_profile.txt`."""
    from torch.profiler import ProfilerActivity, profile

    unet, inputs = large_unet(bench), unet_inputs(bench, size, 2)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    found: dict[str, Any] = {"size": size, "kernels": {}, "lines": []}
    texts = []
    for layout in ("contiguous", "channels last"):
        unet.to(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)
        unet(*inputs[0])
        bench.sync()
        with profile(activities=activities, record_shapes=False) as seen:
            unet(*inputs[1])
            bench.sync()
        table = seen.key_averages()
        key = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
        texts.append(f"{layout}, {size}x{size}\n" + table.table(sort_by=key, row_limit=40, max_name_column_width=90))
        on_device = [row for row in table if not bench.is_cuda or "CUDA" in str(getattr(row, "device_type", ""))]
        rows = sorted(on_device, key=lambda row: -getattr(row, key))[:15]
        total = sum(getattr(row, key) for row in on_device) or 1
        found["kernels"][layout] = [
            {"name": row.key, "calls": row.count, "us": getattr(row, key), "share": getattr(row, key) / total}
            for row in rows
        ]
        found["lines"] += [
            f"{layout:13} {row['share']:6.1%} {row['calls']:5} x {row['name'][:70]}"
            for row in found["kernels"][layout][:6]
        ]
    unet.to(memory_format=torch.contiguous_format)
    (bench.out / "unet_profile.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return found


@torch.no_grad()
def unet_compiled(bench: Bench, *ways: tuple[int, str]) -> dict[str, Any]:
    """Time the step compiled, and how far it is from the eager one. Without a compiler this fails, and says so."""
    unet = large_unet(bench)
    found: dict[str, Any] = {"ways": {}, "lines": []}
    bench.kept["unet_compiled.partial"] = found
    for size, layout in ways[: bench.pick(None, 1)]:
        inputs = unet_inputs(bench, size, 2)
        with FlopCounterMode(display=False) as counter:
            expected = unet(*inputs[0]).float()
        flops = counter.get_total_flops()
        unet.to(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        # The rehearsal takes the compiler's front half only, which is what the network could be at odds with.
        compiled = torch.compile(unet, dynamic=False, backend=bench.pick("inductor", "eager"))
        began = time.perf_counter()
        out = compiled(*inputs[0]).float()
        bench.sync()
        compiling = time.perf_counter() - began
        seconds = bench.seconds_of(lambda given, run=compiled: run(*given), inputs)
        error = float((out - expected).norm() / expected.norm())
        share = bench.share(flops, seconds)
        found["ways"][f"{size}, {layout}"] = {
            "seconds": seconds, "compile_seconds": compiling, "share": share, "relative_error": error,
            "tflops": flops / seconds / 1e12, "graph_breaks": dict(torch._dynamo.utils.counters["graph_break"]),
        }  # fmt: skip
        found["lines"].append(
            f"{size} {layout:13} {seconds * 1e3:8.2f} ms {flops / seconds / 1e12:6.1f} TFLOP/s {share:6.1%}"
            f", compiled in {compiling:.0f} s, differs by {error:.1e}"
        )
    unet.to(memory_format=torch.contiguous_format)
    bench.kept.pop("unet_compiled.partial", None)
    return found


@torch.no_grad()
def decoders(bench: Bench) -> dict[str, Any]:
    """Time decoding with temporal layers against diffusers' image decoder and its temporal one (SVD's)."""
    sizes: dict[str, Any] = {
        "block_out_channels": bench.pick((128, 256, 512, 512), (8, 16)),
        "layers_per_block": bench.pick(2, 1),
    }
    blocks = len(sizes["block_out_channels"])
    down = ("DownEncoderBlock2D",) * blocks
    norm = bench.pick({}, {"norm_num_groups": 4})
    with torch.device(bench.device):
        image = AutoencoderKL(**sizes, **norm, down_block_types=down, up_block_types=("UpDecoderBlock2D",) * blocks)
    temporal = _awake(TemporalAutoencoder.from_image(image.to(bench.dtype)))
    image.requires_grad_(False).eval()
    side, found = bench.pick(64, 8), {"ways": {}, "lines": []}
    bench.kept["decoder.partial"] = found

    def note(way: str, frames: int, decode: Callable[[Tensor], Any]) -> None:
        inputs = [bench.random(4, frames, side, side) for _ in range(2)]
        try:
            with bench.peak() as peak:
                decode(inputs[0])
                bench.sync()
                bytes_ = peak()
            repeats = 1 if frames > 32 else 2
            seconds = bench.seconds_of(decode, inputs, limit_s=0.5) if repeats > 1 else _once(bench, decode, inputs[1])
        except (RuntimeError, torch.OutOfMemoryError) as error:
            found["ways"][f"{way}, {frames}"] = {"error": str(error).splitlines()[0][:200]}
            found["lines"].append(f"{frames:4} frames, {way:28} not here: {str(error).splitlines()[0][:60]}")
            return
        found["ways"][f"{way}, {frames}"] = {"seconds_per_frame": seconds / frames, "peak_bytes": bytes_}
        found["lines"].append(
            f"{frames:4} frames, {way:28} {seconds / frames * 1e3:7.2f} ms each, peak {bytes_ / 1e9:6.2f} GB"
        )

    def ours(z: Tensor) -> None:
        for _ in temporal.decode(z.split(CLIP_FRAMES, dim=1), state=StreamState()):
            pass

    def singly(z: Tensor) -> None:
        for k in range(z.shape[1]):
            image.decode(z[:, k][None])

    lengths = bench.pick((8, 32, 128), (2, 4))
    for frames in lengths:
        note("ours", frames, ours)
        note("image, one by one", frames, singly)
    note("image, by eight", lengths[1], lambda z: [image.decode(part) for part in z.transpose(0, 1).split(8)])
    default = temporal.max_memory
    found["frames_per_pass"] = {"default": temporal.frames_per_decode(side * 8, side * 8) if not bench.is_tiny else 1}
    temporal.max_memory = bench.pick(16 * 10**9, default)
    for frames in lengths:
        note("ours, 16 GB to work in", frames, ours)
    temporal.to(memory_format=torch.channels_last)
    note("ours, 16 GB, channels last", lengths[1], ours)
    torch.backends.cudnn.benchmark = True
    note("ours, 16 GB, ch. last, bench.", lengths[1], ours)
    torch.backends.cudnn.benchmark = False
    bench.free()
    with torch.device(bench.device):
        svd = AutoencoderKLTemporalDecoder(**sizes, down_block_types=down) if not bench.is_tiny else None
    if svd is not None:
        svd = svd.to(bench.dtype).requires_grad_(False).eval()
        for frames in lengths[:2]:  # more at once are more numbers than kernels count in 32 bits
            note("SVD's, whole", frames, lambda z: svd.decode(z.transpose(0, 1), num_frames=z.shape[1]))
        note(
            "SVD's, by eight",
            lengths[-1],
            lambda z: [svd.decode(p, num_frames=len(p)) for p in z.transpose(0, 1).split(8)],
        )
    bench.kept.pop("decoder.partial", None)
    return found


def _once(bench: Bench, call: Callable[[Tensor], Any], given: Tensor) -> float:
    bench.sync()
    start = time.perf_counter()
    call(given)
    bench.sync()
    return time.perf_counter() - start


def _awake(network: Any) -> Any:
    """Give temporal layers weights that do something, and make the network ready for inference."""
    for parameter in temporal_parameters(network).values():
        parameter.data.normal_(std=0.02) if parameter.ndim > 1 else None
    return network.requires_grad_(False).eval()
