"""How right `latentvid plan` is: its estimate of memory and time against the film that is really made.

    python scripts/bench_plan.py --model checkpoints/NAME [--frames 64 256] [--size WxH ...] [--json FILE]

Estimate and film have a process each. Memory is what the process (CPU) or the allocator (CUDA) held at its peak beyond
what it held before the model was loaded. Targets: memory within 15 %, time within 25 %; exit code 1 if missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY_TARGET, TIME_TARGET = 0.15, 0.25


def main() -> int:
    arguments = _arguments()
    if arguments.child:
        print(json.dumps(estimate(arguments) if arguments.child == "estimate" else make(arguments)))
        return 0
    rows = []
    for size in arguments.size or [None]:
        for frames in arguments.frames:
            planned, made = (_child(arguments, kind, frames, size) for kind in ("estimate", "make"))
            row = {"num_frames": frames, "size": size or planned["size"], "planned": planned, "made": made}
            for name in ("memory_bytes", "seconds"):
                row[f"{name}_error"] = planned[name] / made[name] - 1
            rows.append(row)
            print(
                f"{frames} frames of {row['size']}: memory {planned['memory_bytes'] / 1e6:.0f} MB planned, "
                f"{made['memory_bytes'] / 1e6:.0f} taken ({row['memory_bytes_error']:+.0%}); "
                f"time {planned['seconds']:.1f} s, {made['seconds']:.1f} ({row['seconds_error']:+.0%})",
                flush=True,
            )
    worst = {name: max(abs(row[f"{name}_error"]) for row in rows) for name in ("memory_bytes", "seconds")}
    is_met = worst["memory_bytes"] <= MEMORY_TARGET and worst["seconds"] <= TIME_TARGET
    if arguments.json:
        found = {"rows": rows, "worst": worst, "targets": [MEMORY_TARGET, TIME_TARGET], "is_met": is_met}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"largest error: memory {worst['memory_bytes']:.0%}, time {worst['seconds']:.0%}")
    return int(not is_met)


def estimate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the plan says."""
    from latentvid.film.estimate import estimate_film

    pipeline, _ = _load(arguments)
    height, width = _size(arguments)
    sampling = pipeline.sampling(num_inference_steps=arguments.steps, height=height, width=width)
    found = estimate_film(pipeline, arguments.out, arguments.frames[0], sampling)
    memory = found.weights_bytes + found.working_bytes + (found.host_bytes if found.device == "cpu" else 0)
    return {"memory_bytes": memory, "seconds": found.seconds, "size": f"{found.width}x{found.height}"}


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the film and return what it took."""
    import torch

    from latentvid.core.memory import peak_rss_bytes
    from latentvid.film.generate import generate_film

    pipeline, before = _load(arguments)
    height, width = _size(arguments)
    start = time.perf_counter()
    generate_film(
        pipeline, arguments.prompt, arguments.out, num_frames=arguments.frames[0], num_inference_steps=arguments.steps,
        height=height, width=width, keep_run=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    is_cuda = pipeline.unet.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if is_cuda else peak_rss_bytes() - before
    return {"memory_bytes": peak, "seconds": seconds}


def _load(arguments: argparse.Namespace) -> tuple[Any, int]:
    """Return the pipeline, and the bytes that this process held before."""
    import psutil

    from latentvid.core.runtime import resolve_runtime
    from latentvid.pipeline import LatentVideoPipeline

    before = int(psutil.Process().memory_info().rss)
    return LatentVideoPipeline.from_pretrained(arguments.model, runtime=resolve_runtime(arguments.device)), before


def _size(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    if not arguments.size:
        return None, None
    width, height = (int(side) for side in arguments.size[0].split("x"))
    return height, width


def _child(arguments: argparse.Namespace, kind: str, frames: int, size: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", arguments.model, "--steps", str(arguments.steps), "--device", arguments.device]
        words += ["--prompt", arguments.prompt, "--frames", str(frames), "--child", kind]
        words += ["--out", str(Path(folder) / "film.mp4"), *(["--size", size] if size else [])]
        run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="slow clouds drifting left over hills at dusk")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--size", nargs="+", metavar="WxH", help="the model's own if not given")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=["estimate", "make"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
