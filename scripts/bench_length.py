"""Makes one very long film and shows that its windows cost the same from first to last.

    python scripts/bench_length.py --model checkpoints/NAME [--frames 10000] [--steps 2] [--json FILE]

Prints memory and the time between windows along the film (medians over the windows from that one on, and the film's
last ones), when the first frames could be watched, and how long joining took. Targets: the last window holds at most
1 % more than the third; window 100 takes at most 2 % longer than window 2; exit code 1 if missed. The time is that from
one window's first denoiser call to the next one's: sampling, decoding, encoding, hashing, the preview, all of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from latentvid.core.runtime import resolve_runtime
from latentvid.film.folder import run_path
from latentvid.film.generate import generate_film
from latentvid.film.make import Progress
from latentvid.pipeline import LatentVideoPipeline

EVERY = 100
"""Windows between those whose memory is measured."""
GROUP = 40
"""Windows of which the median is taken: one window's time depends on what else the machine does."""
MEMORY_TARGET, TIME_TARGET = 0.01, 0.02


class Watch:
    """Notes clock and memory whenever a window begins."""

    def __init__(self, run: Path, device: torch.device) -> None:
        self.run, self.device, self.process = run, device, psutil.Process()
        self.begins: list[float] = []
        self.held: dict[int, int] = {}
        self.playable_after: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self.playable_after is None and any((self.run / "preview").glob("*.ts")):
            self.playable_after = time.perf_counter()
        if progress.call == 0:
            number, is_last = len(self.begins), len(self.begins) == progress.num_windows - 1
            if number in (2, 3) or number % EVERY == 0 or is_last:
                self.held[number] = self.memory()
            self.begins.append(time.perf_counter())

    def memory(self) -> int:
        """Return what is held, without what the allocator keeps for later: that wanders by some percent."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it
        if trim is not None:
            trim(0)
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) + self.process.memory_info().rss
        return self.process.memory_info().rss


def main() -> int:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runtime = resolve_runtime(arguments.device)
    pipeline = LatentVideoPipeline.from_pretrained(arguments.model, runtime=runtime)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        out = Path(folder) / "film.mp4"
        watch, start = Watch(run_path(out), runtime.device), time.perf_counter()
        report = generate_film(
            pipeline,
            arguments.prompt,
            out,
            num_frames=arguments.frames,
            num_inference_steps=arguments.steps,
            on_progress=watch,
        )
        end = time.perf_counter()
        written = sum(file.stat().st_size for file in out.parent.rglob("*") if file.is_file())
    found = compared(watch, start)
    found |= {"num_frames": report.num_frames, "num_windows": report.num_windows, "seconds": end - start}
    found |= {"last_window_and_joining_s": end - watch.begins[-1], "bytes_on_disk": written}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {name: value for name, value in found.items() if name not in ("seconds_per_window", "bytes_held")}, indent=2
        )
    )
    is_met = found["memory_growth"] <= MEMORY_TARGET and found["time_growth"] <= TIME_TARGET
    return int(not is_met)


def compared(watch: Watch, start: float) -> dict[str, Any]:
    """Return memory and time along the film."""
    seconds = [after - before for before, after in zip(watch.begins, watch.begins[1:], strict=False)]
    places = [2, *range(EVERY, len(seconds) - GROUP, EVERY), len(seconds) - GROUP]
    medians = {place: statistics.median(seconds[place : place + GROUP]) for place in places}
    third, last = watch.held[3], watch.held[max(watch.held)]
    return {
        "seconds_per_window": medians,
        "bytes_held": watch.held,
        "first_frames_playable_after_s": (watch.playable_after or float("nan")) - start,
        "memory_third_window": third,
        "memory_last_window": last,
        "memory_growth": last / third - 1,
        "seconds_window_2": medians[2],
        "seconds_window_100": medians[places[1]],
        "seconds_last_windows": medians[places[-1]],
        "time_growth": medians[places[1]] / medians[2] - 1,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="slow clouds drifting left over hills at dusk")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of the CPU; all if not given")
    parser.add_argument("--folder", type=Path, help="where the film goes until it is measured; else a temporary one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
