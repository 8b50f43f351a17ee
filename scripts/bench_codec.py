"""Measure video decoders side by side: ours on Stable Diffusion's decoder, and those of diffusers.

All have random weights, so speed, memory, exactness and frame counts are real and pictures are not. Every case (a
decoder at a number of frames) runs in a process of its own. Memory is measured apart from time, with an allocator that
gives back at once what is freed (glibc's; that takes a tenth more time): else a quarter of a peak is what the heap
happened to keep in pieces. Every decoder is compared with the image decoder, which decodes a chunk of frames before
each of its own in the same process: minutes apart, other work on a machine moves such ratios by a third.

    python scripts/bench_codec.py --tiny                       # seconds; says that everything runs
    python scripts/bench_codec.py --json bench_codec.json      # the architectures' full sizes

Columns: seconds and CPU seconds per frame at the middle number of frames; the ratio to the image decoder beside it
(CPU); working set (peak less what was held with the weights loaded) at each number of frames; the ratio of the second
to the first; the largest difference between decoding in chunks and whole at the middle number of frames, over the
spread of the picture; frames back for the frames that went in. "ours" is through latentvid, which pads and cuts;
"diffusers" is what a plain encode and decode gives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SD = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SVD = {k: v for k, v in SD.items() if k != "up_block_types"}
LTX_TINY = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 8, 16, 16),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
}
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "image": ("AutoencoderKL", SD, {"block_out_channels": (32,) * 4, "layers_per_block": 1}),
    "ours": ("AutoencoderKL", SD, {"block_out_channels": (32,) * 4, "layers_per_block": 1}),
    "svd": ("AutoencoderKLTemporalDecoder", SVD, {"block_out_channels": (32,) * 4, "layers_per_block": 1}),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {},
        {"block_out_channels": (8, 8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    ),
    "wan": ("AutoencoderKLWan", {}, {"base_dim": 8, "num_res_blocks": 1}),
    "ltx": ("AutoencoderKLLTXVideo", {}, LTX_TINY),
    "hunyuan": ("AutoencoderKLHunyuanVideo", {}, {"block_out_channels": (32,) * 4, "layers_per_block": 1}),
    "taesd": ("AutoencoderTiny", {}, {}),
}
"""Name -> class in diffusers, settings, and what else is set with --tiny."""
CASES = [
    "image", "ours", "taesd", "ours on taesd", "svd", "svd (diffusers)", "cogvideox", "cogvideox (diffusers)",
    "wan", "wan (diffusers)", "ltx", "ltx (diffusers)", "hunyuan", "hunyuan (diffusers)",
]  # fmt: skip


def main() -> int:
    """Run every case in its own process, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="narrow networks: does it run?")
    parser.add_argument("--frames", type=int, nargs="+", help="default 8 32 128; with --tiny 2 5 9")
    parser.add_argument("--size", type=int, help="pixels per side; default 128, with --tiny 32")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--chunk", type=int, default=4, help="latents that arrive at a time")
    parser.add_argument("--pass-mb", type=float, default=0, help="max_memory of ours, in MB; 0 for its default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds per case")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.frames = options.frames or ([2, 5, 9] if options.tiny else [8, 32, 128])
    options.size = options.size or (32 if options.tiny else 128)
    if options.case:
        name, frames, what = options.case
        print(json.dumps(MEASURES[what](options, name, int(frames))))
        return 0
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in options.cases:
        found[name] = {frames: run_case(options, name, frames, "memory") for frames in options.frames}
        found[name][middle(options.frames)] |= run_case(options, name, middle(options.frames), "speed")
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    rows = [row(name, cases, options.frames) for name, cases in found.items()]
    print_table(rows)
    if options.json:
        about = {k: v for k, v in vars(options).items() if k not in ("json", "case")}
        options.json.write_text(json.dumps({"about": {**about, **machine()}, "rows": rows, "cases": found}, indent=1))
    return int(any("error" in case for cases in found.values() for case in cases.values()))


def middle(frames: list[int]) -> int:
    return frames[len(frames) // 2]


def run_case(options: argparse.Namespace, name: str, frames: int, what: str) -> dict[str, Any]:
    """Measure one case in a fresh process; what goes wrong there is a row of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", name, str(frames), what]
    env = {**os.environ, **(GIVES_BACK if what == "memory" else {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, env=env)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {options.timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare(options: argparse.Namespace, name: str, frames: int) -> tuple[Any, Any]:
    """Return the network of a case, warm, and the latents of so many frames."""
    import torch

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    network = make(options, name)
    # Small pictures say how many latents the frames become; of full size they would cost more than the decoding.
    small = network.encode(torch.rand(frames, 3, 32, 32) * 2 - 1)
    side = options.size * small.shape[-1] // 32
    latents = torch.randn(small.shape[0], small.shape[1], side, side, device=options.device)
    network.decode(latents[:, :1], 1)  # what is made once, and the kernels' own warming up
    return network, latents


def measure_memory(options: argparse.Namespace, name: str, frames: int) -> dict[str, Any]:
    """Decode `frames` frames in chunks in this process, and return what that held."""
    network, latents = prepare(options, name, frames)
    held = reset_peak(options.device)
    num_frames = sum(len(part) for part in network.stream(latents.split(options.chunk, dim=1)))
    peak = peak_bytes(options.device)
    return {
        "frames_in": frames,
        "frames_out": num_frames,
        "latents": latents.shape[1],
        "working_set_mb": (peak - held) / 1e6,
        "peak_mb": peak / 1e6,
    }


def measure_speed(options: argparse.Namespace, name: str, frames: int) -> dict[str, Any]:
    """Decode `frames` frames in chunks and whole in this process: how long the first takes, how far they differ."""
    import torch

    network, latents = prepare(options, name, frames)
    beside = ImageDecoderBeside(options)
    start = Clock(options.device)
    parts = torch.cat(list(network.stream(beside.before_each(latents.split(options.chunk, dim=1)))))
    wall, cpu = start.seconds()
    wall, cpu = wall - beside.wall, cpu - beside.cpu
    beside.decode()
    whole = network.decode(latents, frames)
    same = len(whole) == len(parts)
    return {
        "seconds_per_frame": wall / frames,
        "cpu_seconds_per_frame": cpu / frames,
        "image_cpu_seconds_per_frame": beside.cpu / beside.num_frames,
        "chunk_error": float((whole - parts).abs().max() / whole.std()) if same else float("nan"),
        "num_decoder_parameters": network.num_parameters,
    }


class Clock:
    """Wall and CPU seconds since it was made, of work on a device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.start, self.start_cpu = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        wall, cpu = self._now()
        return wall - self.start, cpu - self.start_cpu


class ImageDecoderBeside:
    """The image decoder on a chunk of frames whenever another decoder takes a chunk, and what that took."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = options.device
        self.network, self.latents = prepare(options, "image", options.chunk)
        self.wall = self.cpu = 0.0
        self.num_frames = 0

    def decode(self) -> None:
        start = Clock(self.device)
        self.num_frames += len(self.network.decode(self.latents, self.latents.shape[1]))
        wall, cpu = start.seconds()
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu

    def before_each(self, chunks: Iterable[Any]) -> Iterator[Any]:
        for chunk in chunks:
            self.decode()
            yield chunk


MEASURES = {"memory": measure_memory, "speed": measure_speed}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""What has glibc give freed memory back at once."""


class Ours:
    """A network through latentvid: streams, padded and cut."""

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.num_parameters = sum(p.numel() for p in autoencoder.decoder.parameters())
        self.num_frames = 0

    def encode(self, video: Any) -> Any:
        import torch

        self.num_frames = len(video)
        return torch.cat(list(self.autoencoder.encode(video.split(4))), dim=1)

    def stream(self, chunks: Any) -> Iterator[Any]:
        from latentvid.autoencoders.base import first_frames

        return first_frames(self.autoencoder.decode(chunks), self.num_frames)

    def decode(self, latents: Any, num_frames: int) -> Any:
        import torch

        return torch.cat(list(self.stream([latents])))


class Diffusers:
    """A network as diffusers runs it; a chunk is decoded by itself, where nothing better is offered."""

    def __init__(self, network: Any, device: str) -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.device = device
        self.num_parameters = sum(p.numel() for p in network.decoder.parameters())
        self.is_svd = type(network).__name__ == "AutoencoderKLTemporalDecoder"

    def encode(self, video: Any) -> Any:
        if self.is_svd:
            parts = [self.network.encode(part.to(self.device)).latent_dist.mean for part in video.split(4)]
            import torch

            return torch.cat(parts).transpose(0, 1)
        return self.network.encode(video.transpose(0, 1)[None].to(self.device)).latent_dist.mean[0]

    def stream(self, chunks: Any) -> Iterator[Any]:
        if self.is_svd:  # what `decode_chunk_size` does
            return (self.decode(chunk, chunk.shape[1]) for chunk in chunks)
        import torch

        return iter([self.decode(torch.cat(list(chunks), dim=1), 0)])  # they cut films themselves, or not at all

    def decode(self, latents: Any, num_frames: int) -> Any:
        if self.is_svd:
            return self.network.decode(latents.transpose(0, 1), num_frames=latents.shape[1]).sample
        return self.network.decode(latents[None]).sample[0].transpose(0, 1)


def make(options: argparse.Namespace, name: str) -> Any:
    """Return the network of a case; temporal layers of ours are not at rest."""
    import diffusers
    import torch

    from latentvid.autoencoders.image import ImageAutoencoder
    from latentvid.autoencoders.temporal import TemporalAutoencoder
    from latentvid.autoencoders.video import VIDEO_NETWORKS
    from latentvid.temporal.inject import temporal_parameters

    key = name.removesuffix(" (diffusers)").removeprefix("ours on ")
    kind, settings, tiny = NETWORKS[key]
    network = getattr(diffusers, kind)(**{**settings, **(tiny if options.tiny else {})}).eval()
    if name.endswith("(diffusers)"):
        return Diffusers(network, options.device)
    autoencoder = VIDEO_NETWORKS.get(kind)(network) if kind in VIDEO_NETWORKS else ImageAutoencoder(network)
    if name.startswith("ours"):
        autoencoder = TemporalAutoencoder.from_image(autoencoder)
        for parameter in temporal_parameters(autoencoder).values():
            parameter.data += 0.01 * torch.randn(parameter.shape)
    torch.nn.Module.to(autoencoder, options.device)
    if options.pass_mb:
        autoencoder.max_memory = int(options.pass_mb * 1e6)
    return Ours(autoencoder)


def reset_peak(device: str) -> int:
    """Forget peaks and return what is held now."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    import psutil

    with contextlib.suppress(OSError):  # Linux alone sets the peak back; elsewhere it counts from the start
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: str) -> int:
    """Return the peak since `reset_peak`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    from latentvid.core.memory import peak_rss_bytes

    return peak_rss_bytes()


def row(name: str, cases: dict[int, Any], frames: list[int]) -> dict[str, Any]:
    """Return the table's row of one decoder."""
    failures = [case["error"] for case in cases.values() if "error" in case]
    if failures:
        return {"decoder": name, "error": failures[0]}
    case = cases[middle(frames)]
    sets = {n: cases[n]["working_set_mb"] for n in frames}
    found: dict[str, Any] = {
        "decoder": name,
        "M": case["num_decoder_parameters"] / 1e6,
        "s/frame": case["seconds_per_frame"],
        "CPU s/frame": case["cpu_seconds_per_frame"],
        "x image": ratio(case["cpu_seconds_per_frame"], case["image_cpu_seconds_per_frame"]),
    }
    found |= {f"MB at {n}": value for n, value in sets.items()}
    found[f"{frames[min(1, len(frames) - 1)]}/{frames[0]}"] = ratio(
        sets[frames[min(1, len(frames) - 1)]], sets[frames[0]]
    )
    found["chunk error"] = case["chunk_error"]
    found["frames"] = ", ".join(f"{c['frames_in']}>{c['frames_out']}" for c in cases.values())
    return found


def ratio(value: float, base: float) -> float | None:
    return value / base if base else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows in columns of equal width; failures below."""
    names = list(dict.fromkeys(key for found in rows for key in found if key != "error"))
    cells = [names, *([show(found.get(key)) for key in names] for found in rows if "error" not in found)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for found in rows:
        if "error" in found:
            print(f"{found['decoder']}: {found['error']}")


def show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    import platform

    import diffusers
    import torch

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "processor": platform.processor()}


if __name__ == "__main__":
    sys.exit(main())
