"""Extends one clip many times, each time from the film before, and shows what that does to it.

    python scripts/extend_many.py CLIP --model checkpoints/NAME -o FOLDER [--times 10] [--frames 16] [--steps 20]
        [--retime blend] [--guidance G] [--crf 18]

Prints whether the clip's own frames still decode to the same bits, the step of the picture at every join against the
median step of the clip and of the new frames, and how colour and sharpness drift; keeps the films and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentvid.core.files import write_json
from latentvid.core.runtime import resolve_runtime
from latentvid.film.extend import extend_clip
from latentvid.metrics.drift import Drift
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.pixels import to_float
from latentvid.video.reader import open_video
from latentvid.video.sheet import save_contact_sheet

SLOPES = ("luma_mean_slope", "saturation_slope", "sharpness_slope")


def main() -> int:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipeline = LatentVideoPipeline.from_pretrained(arguments.model, runtime=resolve_runtime(arguments.device))
    own = pixels(arguments.clip)
    clip, joins = arguments.clip, []
    for k in range(arguments.times):
        joins.append(len(own) + k * arguments.frames)
        out = arguments.out / f"{k + 1:02d}.mp4"
        extend_clip(
            pipeline,
            clip,
            out,
            num_frames=arguments.frames,
            prompt=arguments.prompt,
            retime=arguments.retime,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            crf=arguments.crf,
            seed=k,
            overwrite=True,
        )
        clip = out
    film = pixels(clip)
    found = compared(own, film, joins)
    write_json(arguments.out / "extensions.json", found)
    save_contact_sheet(arguments.out / "extensions.png", film[:: max(1, len(film) // 48)], columns=12, overwrite=True)
    print(json.dumps(found, indent=2))
    wanted = len(own) + arguments.times * arguments.frames
    return 0 if found["own_frames_equal"] and len(film) == wanted else 1


def pixels(path: Path) -> Tensor:
    """Return all frames, uint8 [t 3 h w]."""
    with open_video(path) as reader:
        return torch.stack([frame.pixels for frame in reader.frames()])


def compared(own: Tensor, film: Tensor, joins: list[int]) -> dict[str, Any]:
    """Return what the extensions did; steps are mean absolute differences of neighbouring frames, of 255."""
    drift = Drift(joins=joins)
    drift.update(to_float(film))
    steps = drift.clips[0].curves["motion"]
    new = Drift()
    new.update(to_float(film[len(own) :]))
    slopes = new.compute()
    at_joins = [steps[join - 1] for join in joins]
    others = [step for k, step in enumerate(steps, start=1) if k not in joins]
    return {
        "num_frames": len(film),
        "own_frames_equal": bool(torch.equal(film[: len(own)], own)),
        "median_step_own": statistics.median(others[: len(own) - 1]),
        "median_step_new": statistics.median(others[len(own) - 1 :]),
        "steps_at_joins": at_joins,
        **{name: slopes[name] for name in SLOPES},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, help="of all windows; the model's own if not given")
    parser.add_argument("--crf", type=float, default=18, help="0 shows joins as the model made them")
    parser.add_argument("--retime", choices=("blend", "repeat", "none"), default="blend")
    parser.add_argument("--prompt", default="scattered clouds, slow wind to the left, over hills by day")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
