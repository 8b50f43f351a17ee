"""Measure what decoding holds: for short and long films, and against the model that chooses the frames per pass.

Each case runs in a fresh process. Prints one line per case: frames, peak of the process, working set (peak less what
it held with the weights loaded), the model's working set (of whole pictures), what was given, seconds. Exits with 1
where the longest film needs over 5 % more than the shortest.

    python scripts/bench_decode_memory.py --vae path/to/vae --frames 100 1000 --size 256
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def main() -> int:
    """Run every case in its own process and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", required=True, help="autoencoder folder, or 'sd' for one of Stable Diffusion's size")
    parser.add_argument("--image", action="store_true", help="decode frame by frame, without temporal layers")
    parser.add_argument("--encode", action="store_true", help="measure encoding instead")
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16, help="frames that arrive at a time")
    parser.add_argument("--pass-mb", type=float, default=512, help="working set to keep, in MB")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options, options.case)))
        return 0
    found = []
    for frames in options.frames:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", str(frames)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr.splitlines()[-1])
        found.append(json.loads(result.stdout.splitlines()[-1]))
        print(", ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    growth = found[-1]["peak_mb"] / found[0]["peak_mb"] - 1
    print(f"peak grows by {growth:.1%} from {options.frames[0]} to {options.frames[-1]} frames")
    return int(growth > 0.05)


def measure(options: argparse.Namespace, frames: int) -> dict[str, float]:
    """Decode `frames` frames in this process and return the figures."""
    import psutil
    import torch

    from latentvid.core.memory import peak_rss_bytes

    torch.manual_seed(0)
    network = make(options)
    factor = network.spatial_factor
    network.max_memory = int(options.pass_mb * 1e6)
    side = options.size // factor
    cost = network._encode_cost if options.encode else network._decode_cost
    at_once = network.frames_per_encode if options.encode else network.frames_per_decode
    per_pass = min(at_once(options.size, options.size), options.chunk)
    plan = (network.plan_encode if options.encode else network.plan_decode)(options.size, options.size)
    model = cost.pass_peak(options.size**2, per_pass)
    held = psutil.Process().memory_info().rss
    dims = (3, options.size, options.size) if options.encode else (network.latent_channels, side, side)
    lengths = [options.chunk] * (frames // options.chunk) + [frames % options.chunk] * bool(frames % options.chunk)
    start = time.perf_counter()
    if options.encode:
        done = sum(z.shape[1] for z in network.encode(torch.rand(n, *dims) * 2 - 1 for n in lengths))
    else:
        done = sum(len(x) for x in network.decode(torch.randn(dims[0], n, *dims[1:]) for n in lengths))
    assert done == frames
    peak = peak_rss_bytes()
    return {
        "frames": frames,
        "frames_per_pass": per_pass,
        "tiles": plan.num_tiles,
        "peak_mb": round(peak / 1e6, 1),
        "working_set_mb": round((peak - held) / 1e6, 1),
        # Tiles are chosen to fit; of whole pictures the model says what they need.
        **({"model_mb": round(model / 1e6, 1)} if plan.num_tiles == 1 else {}),
        "given_mb": options.pass_mb,
        "seconds": round(time.perf_counter() - start, 1),
    }


def make(options: argparse.Namespace):
    """Return the autoencoder, its temporal layers (if any) not at rest."""
    import torch
    from diffusers import AutoencoderKL

    from latentvid.autoencoders.image import ImageAutoencoder
    from latentvid.autoencoders.load import load_autoencoder
    from latentvid.autoencoders.temporal import TemporalAutoencoder
    from latentvid.temporal.inject import temporal_parameters

    if options.vae == "sd":
        network = ImageAutoencoder(
            AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
        )
    else:
        network = load_autoencoder(options.vae)
    if not options.image and not isinstance(network, TemporalAutoencoder):
        network = TemporalAutoencoder.from_image(network)
        for parameter in temporal_parameters(network).values():
            parameter.data += 0.01 * torch.randn(parameter.shape)
    return network.requires_grad_(False).eval()


if __name__ == "__main__":
    sys.exit(main())
