"""Real clips through `encode` and `decode`, as a user would call them: are frames and times kept, and how close is it?

    LATENTVID_TEST_ASSETS=../shared python scripts/roundtrip_clips.py --max-frames 24

PSNR is that of the written file against the source, its H.264 included. Ends with 1 where a frame or a time is lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from latentvid.cli.main import main
from latentvid.cli.output import columns
from latentvid.video.reader import open_video

ROOT = Path(__file__).resolve().parents[1]
TICK_S = Fraction(1, 1000)
"""Times of the slowest clock that a container keeps (Matroska's milliseconds)."""


def run_all() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    assets = Path(os.environ.get("LATENTVID_TEST_ASSETS", ROOT / ".." / "shared")).resolve()
    parser.add_argument("--folder", type=Path, default=assets / "data" / "clips")
    parser.add_argument("--vae", type=Path, default=assets / "weights" / "taesd")
    parser.add_argument("--max-frames", type=int, default=24, help="0: whole clips")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    rows = [["clip", "size", "frames", "frames out", "times", "PSNR, dB", "worst frame", "encode, s", "decode, s"]]
    lost = []
    for path in sorted(options.folder.iterdir()):
        row, is_kept = roundtrip(path, options.vae, options.max_frames, options.dtype)
        rows.append(row)
        print(" ".join(row), file=sys.stderr, flush=True)
        if not is_kept:
            lost.append(path.name)
    print(columns(rows))
    print(f"frames or times lost: {', '.join(lost)}" if lost else "every frame and every time is kept")
    return int(bool(lost))


def roundtrip(path: Path, vae: Path, max_frames: int, dtype: str) -> tuple[list[str], bool]:
    """Return a row of the table, and whether frames and times are those of the source."""
    with tempfile.TemporaryDirectory() as folder:
        latents, decoded = str(Path(folder) / "clip.safetensors"), str(Path(folder) / f"clip{path.suffix}")
        common = ["--vae", str(vae), "--dtype", dtype, "--quiet"]
        seconds = []
        for words in (
            ["encode", str(path), "-o", latents, "--max-frames", str(max_frames), *common],
            ["decode", latents, "-o", decoded, *common],
        ):
            began = time.perf_counter()
            if main(words):
                return [path.name, "-", "-", "-", "refused", "-", "-", "-", "-"], False
            seconds.append(f"{time.perf_counter() - began:.1f}")
        before, after = read(path, max_frames), read(Path(decoded), 0)
    times = compare_times(before[1], after[1])
    psnr = [frame_psnr(x, y) for x, y in zip(after[0], before[0], strict=False)]
    size = f"{before[0][0].shape[-1]}x{before[0][0].shape[-2]}"
    numbers = [str(len(before[1])), str(len(after[1])), times]
    figures = [f"{sum(psnr) / len(psnr):.2f}", f"{min(psnr):.2f}"]
    is_kept = len(before[1]) == len(after[1]) and times == "equal"
    return [path.name, size, *numbers, *figures, *seconds], is_kept


def read(path: Path, max_frames: int) -> tuple[list[Tensor], list[Fraction]]:
    """Return frames, uint8 [3 h w], and their times in seconds."""
    with open_video(path) as video:
        found = list(islice(video.frames(), max_frames or None))
    return [frame.pixels for frame in found], [frame.time_s for frame in found]


def compare_times(before: list[Fraction], after: list[Fraction]) -> str:
    """Say whether times since the first frame agree to a tick, or by how much they do not."""
    if not before or not after:
        return "no frames"
    worst = max(abs((x - before[0]) - (y - after[0])) for x, y in zip(before, after, strict=False))
    return "equal" if worst <= TICK_S else f"off by {float(worst):.4f} s"


def frame_psnr(frame: Tensor, reference: Tensor) -> float:
    error = (frame.float() - reference.float()).square().mean() / 255**2
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


if __name__ == "__main__":
    sys.exit(run_all())
