"""What `generate` costs besides its networks: time outside their forward passes, and memory against length.

    python scripts/bench_generate.py --model checkpoints/NAME [--steps 20] [--json FILE]

Prints the share of wall time spent outside the forward passes of U-Net, text encoder and decoder; the peak resident
memory of 64 and of 640 frames, each in a process of its own; and whether both films begin with the same 32 frames.
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

FIRST = 32


def main() -> int:
    arguments = _arguments()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        runs = [_child(arguments, frames, Path(folder) / f"{frames}.mp4") for frames in arguments.frames]
        common = min(FIRST, *arguments.frames)
        films = [_beginning(Path(folder) / f"{frames}.mp4", common) for frames in arguments.frames]
    short, long = runs
    found = {
        "runs": runs,
        "share_outside_networks": short["outside_s"] / short["wall_s"],
        "peak_growth": long["peak_rss_bytes"] / short["peak_rss_bytes"] - 1,
        "first_frames_equal": films[0] == films[1],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for run in runs:
        print(
            f"{run['num_frames']} frames: {run['wall_s']:.1f} s, of them {run['outside_s']:.2f} s "
            f"({run['outside_s'] / run['wall_s']:.1%}) outside the networks; peak {run['peak_rss_bytes'] / 1e6:.0f} MB"
        )
    print(f"memory of the longer film: {found['peak_growth']:+.1%}")
    print(f"first {common} frames identical: {'yes' if found['first_frames_equal'] else 'NO'}")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one film in this process and return what it took."""
    from latentvid.core.memory import peak_rss_bytes
    from latentvid.core.runtime import resolve_runtime
    from latentvid.film.generate import generate_film
    from latentvid.pipeline import LatentVideoPipeline

    runtime = resolve_runtime(arguments.device)
    pipeline = LatentVideoPipeline.from_pretrained(arguments.model, runtime=runtime)
    inside = Stopwatch(runtime.device.type == "cuda")
    inside.watch(pipeline.unet)
    inside.watch(pipeline.text_encoder)
    # The decoder is called by its method, not as a module.
    inside.watch_call(pipeline.autoencoder, "decode_chunk")
    num_frames = arguments.child
    start = time.perf_counter()
    generate_film(
        pipeline,
        arguments.prompt,
        arguments.out,
        num_frames=num_frames,
        num_inference_steps=arguments.steps,
        keep_run=False,
    )
    wall = time.perf_counter() - start
    return {
        "num_frames": num_frames,
        "wall_s": wall,
        "outside_s": wall - inside.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }


class Stopwatch:
    """Adds up the time spent in the outermost of some calls."""

    def __init__(self, is_cuda: bool) -> None:
        self.seconds, self._depth, self._start, self._is_cuda = 0.0, 0, 0.0, is_cuda

    def watch(self, network: Any) -> None:
        network.register_forward_pre_hook(lambda *_: self._enter())
        network.register_forward_hook(lambda *_: self._leave())

    def watch_call(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def timed(*arguments: Any, **more: Any) -> Any:
            self._enter()
            try:
                return call(*arguments, **more)
            finally:
                self._leave()

        object.__setattr__(owner, name, timed)

    def _enter(self) -> None:
        if self._depth == 0:
            self._start = self._now()
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += self._now() - self._start

    def _now(self) -> float:
        if self._is_cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def _child(arguments: argparse.Namespace, frames: int, out: Path) -> dict[str, Any]:
    words = ["--model", arguments.model, "--steps", str(arguments.steps), "--device", arguments.device]
    words += ["--prompt", arguments.prompt, "--out", str(out), "--child", str(frames)]
    run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def _beginning(film: Path, count: int) -> list[bytes]:
    from latentvid.video.reader import open_video

    with open_video(film) as reader:
        return [frame.pixels.numpy().tobytes() for frame in reader.frames(0, count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="slow clouds drifting left over hills at dusk")
    parser.add_argument("--frames", type=int, nargs=2, default=[64, 640], help="two lengths, the shorter first")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=int, metavar="FRAMES", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
