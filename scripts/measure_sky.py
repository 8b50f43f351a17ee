"""Measure the shipped sky model: do prompts matter, how do windows join, what drifts; write it into its folder.

    python scripts/measure_sky.py checkpoints/sky --sheets outputs/sky

Updates metrics.json and the model card's table, and saves contact sheets to look at.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentvid.core.files import write_json
from latentvid.evaluation.samples import AskedScene, evaluate_samples
from latentvid.metrics.drift import Drift
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.sheet import save_contact_sheet

PROMPT = "scattered clouds, slow wind to the left, over hills at dusk"
RULES: dict[str, dict[str, Any]] = {
    "context 8": {"kind": "context", "overlap": 8},
    "context 8, shown at sigma 0.05": {"kind": "context", "overlap": 8, "context_sigma": 0.05},
    "reuse, chronological": {"kind": "reuse", "overlap": 4, "order": "chronological"},
    "reuse, mirror (VidRD)": {"kind": "reuse", "overlap": 4, "order": "mirror"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="clips made to read attributes back from")
    parser.add_argument(
        "--frames", type=int, default=160, help="frames of the films whose joins and drift are measured"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheets", type=Path, help="save contact sheets in this folder")
    parser.add_argument("--skip-rules", action="store_true")
    arguments = parser.parse_args()
    pipeline = LatentVideoPipeline.from_pretrained(arguments.checkpoint)
    path = arguments.checkpoint / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    metrics["samples"] = measure_prompts(pipeline, arguments)
    print(json.dumps(metrics["samples"], indent=2))
    if not arguments.skip_rules:
        metrics["films"] = {name: measure_film(pipeline, rule, name, arguments) for name, rule in RULES.items()}
        print(json.dumps(metrics["films"], indent=2))
    write_json(path, metrics)


def measure_prompts(pipeline: LatentVideoPipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    shown: list[Tensor] = []

    def keep(_: AskedScene, video: Tensor) -> None:
        shown.append(video[:: max(1, len(video) // 4)][:4])

    found = evaluate_samples(
        pipeline,
        num_clips=arguments.clips,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        on_video=keep,
    )
    if arguments.sheets:
        save_contact_sheet(arguments.sheets / "samples.png", torch.cat(shown[:32]), columns=16, overwrite=True)
    return found


def measure_film(
    pipeline: LatentVideoPipeline, rule: dict[str, Any], name: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return the seams' size, the drift and the motion of one film under an overlap rule."""
    settled = pipeline.sampling(seeds=1, num_inference_steps=arguments.steps, rule=rule)
    joins = [window.new_from for window in pipeline.plan(arguments.frames, settled)][1:]
    drift = Drift(joins=joins)
    began, frames = time.monotonic(), []
    for video in pipeline.stream(
        PROMPT,
        num_frames=arguments.frames,
        generator=1,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        rule=rule,
    ):
        drift.update(video)
        frames.append(video[::4])
    seconds = time.monotonic() - began
    drift.end_clip()
    if arguments.sheets:
        save_contact_sheet(
            arguments.sheets / f"film-{name.replace(' ', '-')}.png", torch.cat(frames), columns=10, overwrite=True
        )
    return {**drift.compute(), "seconds_per_frame": seconds / arguments.frames}


if __name__ == "__main__":
    main()
