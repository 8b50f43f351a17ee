"""Measure ways to convolve a clip across frames: as temporal layers do it, over stacked frames, and as Conv3d.

    python scripts/bench_temporal_convolution.py [--rounds 9] [--threads 1] [--json FILE]

One causal convolution of three frames, its past at hand, in the order of memory that the row names. Baseline: a 1x1
convolution over three stacked frames (what temporal layers do where the text moves features). The ways take turns in
one process; times are medians, in milliseconds of CPU time. "training" is a forward and a backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.temporal.context import ClipContext, StreamState
from latentvid.temporal.convolution import KERNEL, TemporalConvolution

SHAPES = [(8, 64, 64), (8, 128, 32), (8, 256, 32), (8, 512, 16)]
"""Frames, channels, pixels per side: widths of small decoders and of Stable Diffusion's."""
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


def main() -> int:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    print(f"{'':56}{'stacked':>9}{'ours':>9}{'conv3d':>9}{'ours, times as fast':>21}")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for layout in LAYOUTS:
                for training in (False, True):
                    taken = measure(*shape, dtype, layout, training=training, rounds=arguments.rounds)
                    row = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
                    rows.append(row | {"work": "training" if training else "forward", "ms": taken})
                    name = f"{shape}, {row['dtype']}, {layout}, {rows[-1]['work']}"
                    print(
                        f"{name:56}{taken['stacked']:9.2f}{taken['ours']:9.2f}{taken['conv3d']:9.2f}"
                        f"{taken['stacked'] / taken['ours']:21.2f}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(
    frames: int, channels: int, side: int, dtype: torch.dtype, layout: str, *, training: bool, rounds: int
) -> dict[str, float]:
    """Return median milliseconds by way."""
    torch.manual_seed(0)
    layer = TemporalConvolution(channels, ClipContext(), "layer", num_convs=1, normalize=False).to(dtype)
    conv = layer.convs[0]
    assert isinstance(conv, torch.nn.Conv2d)
    x = torch.randn(frames, channels, side, side, dtype=dtype).to(memory_format=LAYOUTS[layout])
    past = torch.randn(1, KERNEL - 1, channels, side, side, dtype=dtype)

    def state() -> None:
        layer.context.state = StreamState({"layer": past})

    def stacked(x: Tensor) -> Tensor:
        state()
        if layout == "channels first":
            return conv(layer._stack(x, frames, "layer"))
        clip = x.permute(0, 2, 3, 1)  # [t h w c]: joined in the order in which it lies
        padded = torch.cat([past[0].permute(0, 2, 3, 1).contiguous(), clip])
        return conv(torch.cat([padded[k : k + frames] for k in range(KERNEL)], dim=-1).permute(0, 3, 1, 2))

    def ours(x: Tensor) -> Tensor:
        state()
        return layer._convolve(x, frames, "layer", conv)

    def conv3d(x: Tensor) -> Tensor:
        kernel = conv.weight.view(channels, KERNEL, channels).transpose(1, 2)[..., None, None]
        clip = torch.cat([past[0], x]).transpose(0, 1)[None]
        return F.conv3d(clip, kernel, conv.bias)[0].transpose(0, 1)

    ways = {"stacked": stacked, "ours": ours, "conv3d": conv3d}
    expected = stacked(x)
    for way in ways.values():
        torch.testing.assert_close(way(x), expected, atol=1e-4 if dtype == torch.float32 else 0.05, rtol=0.02)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            once(way, x, training=training)
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def once(way: Callable[[Tensor], Tensor], x: Tensor, *, training: bool) -> None:
    """Compute `way` of `x`, and its gradients for `training`."""
    if not training:
        with torch.no_grad():
            way(x)
        return
    out = way(x.detach().requires_grad_(True))
    out.backward(torch.ones_like(out))


if __name__ == "__main__":
    raise SystemExit(main())
