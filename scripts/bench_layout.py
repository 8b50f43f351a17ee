"""Measures what channels last are worth on the CPU: encoding, decoding and training a temporal autoencoder.

    python scripts/bench_layout.py --vae path/to/vae [--size 128] [--frames 12] [--rounds 3] [--json FILE]

The baseline of every row is the same network on channels first, in the same process, taking turns with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from latentvid.autoencoders.load import load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder


def main() -> int:
    """Measure every row and print the table."""
    arguments = _arguments()
    torch.manual_seed(0)
    loaded = load_image_autoencoder(arguments.vae)
    network = loaded if isinstance(loaded, TemporalAutoencoder) else TemporalAutoencoder.from_image(loaded)
    network.train().requires_grad_(True).freeze_encoder()
    side = arguments.size // network.spatial_factor
    latents = torch.randn(1, network.latent_channels, arguments.frames, side, side)
    video = torch.rand(1, 3, arguments.frames, arguments.size, arguments.size) * 2 - 1

    def encode() -> None:
        with torch.no_grad():
            network.posterior(video)

    def decode() -> None:
        with torch.no_grad():
            network.decode_chunk(latents)

    def step() -> None:
        (network.decode_chunk(latents).float() - video).square().mean().backward()

    rows = []
    for name, work in (("encode", encode), ("decode", decode), ("training step", step)):
        for dtype in (torch.float32, torch.bfloat16):
            before, after = compared(network, work, dtype, arguments.rounds)
            precision = str(dtype).removeprefix("torch.")
            rows.append({"work": name, "dtype": precision, "channels_first_s": before, "channels_last_s": after})
            print(
                f"{name}, {precision}: {before:.3f} s, channels last {after:.3f} s, {before / after:.2f} times as fast"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def compared(
    network: TemporalAutoencoder, work: Callable[[], None], dtype: torch.dtype, rounds: int
) -> tuple[float, float]:
    """Return the median seconds with channels first and with channels last, in turns after a warm-up of each."""
    taken: dict[torch.memory_format, list[float]] = {torch.contiguous_format: [], torch.channels_last: []}
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for _ in range(rounds + 1):
            for layout, seconds in taken.items():
                network.cpu_memory_format = layout
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
    before, after = (statistics.median(seconds[1:]) for seconds in taken.values())
    return before, after


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", required=True, help="image autoencoder folder")
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
