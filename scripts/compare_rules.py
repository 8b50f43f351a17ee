"""Compares ways to extend a film: how large the seams are, how far it drifts, how much of its motion stays.

    python scripts/compare_rules.py --model checkpoints/NAME -o FOLDER [--frames 1000] [--steps 20] [--guidance G]
        [--only RULE ...]

Rules: VidRD's mirror reuse, chronological reuse, clean context (whose last frame is made again and the new ones
corrected by its error, without text guidance), each with and without the drift guard; clean context also at the film's
guidance and at 1.5. Baselines: clean context as it is (`context-plain`), the last frame alone as context, and noise
reshuffled as in FreeNoise (arXiv 2310.15169), without its attention across windows. One JSON and one film per rule and
prompt; what is there already is not made again. FOLDER/table.md and FOLDER/table.json hold the means over the prompts.
"Motion kept" is that of the last frames over that of the first; "goes on at joins" is the cosine between the last
change of picture before a join and the first behind it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from latentvid.core.files import atomic_path, write_json
from latentvid.core.runtime import resolve_runtime
from latentvid.extension.guard import Statistics, bring_back
from latentvid.extension.plan import Window
from latentvid.extension.rollout import make_window
from latentvid.extension.rules import ContextRule, OverlapRule, ReuseRule, Setting, Start, Tail
from latentvid.metrics.drift import EDGE_SHARE, Drift
from latentvid.metrics.metric import mean
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.rate import as_rate
from latentvid.video.writer import VideoWriter

PROMPTS = (
    "slow clouds drifting left over hills at dusk",
    "fast clouds drifting right over the sea at noon",
)
CONTINUING_GUIDANCE = 1.0
COLUMNS = {
    "seam": "seam step / median step",
    "seam_max": "largest",
    "luma_mean_slope": "luma per 100 frames",
    "saturation_slope": "saturation per 100",
    "sharpness_slope": "sharpness per 100",
    "motion_kept": "motion kept",
    "goes_on": "goes on at joins",
    "seconds_per_frame": "s / frame",
}


@dataclass(frozen=True)
class ReshuffledNoise:
    """FreeNoise's noise: every chunk of new frames takes the noise of an earlier one, its frames in another order."""

    overlap: int
    append_overlap: bool = False

    def start(self, setting: Setting, window: Window, tail: Tail | None) -> Start:
        length = setting.shape.frames
        noise = setting.prior.sample(setting.shape, rng=setting.rng, first_frame=0)
        order = reshuffled(window.stop, length, length - self.overlap, seed=setting.rng.seeds[0])
        return Start(noise[:, :, order[window.start : window.stop]].to(setting.device), setting.denoise)


def reshuffled(num_frames: int, length: int, stride: int, *, seed: int) -> list[int]:
    """Return, for every frame of a film, the frame of the first window whose noise it takes.

    >>> reshuffled(8, 4, 2, seed=0)[:4]
    [0, 1, 2, 3]
    """
    draw, order = random.Random(seed), list(range(length))
    while len(order) < num_frames:
        chunk = order[len(order) - length : len(order) - length + stride]
        draw.shuffle(chunk)
        order += chunk
    return order


def rules(overlap: int) -> dict[str, tuple[OverlapRule, bool]]:
    """Return every rule by name, and whether the drift guard corrects it."""
    plain: dict[str, OverlapRule] = {
        "mirror": ReuseRule(overlap=overlap, order="mirror"),
        "chronological": ReuseRule(overlap=overlap, order="chronological"),
        "context": ContextRule(overlap=overlap, guidance_scale=CONTINUING_GUIDANCE),
    }
    guarded = {f"{name}+guard": (rule, True) for name, rule in plain.items()}
    baselines: dict[str, OverlapRule] = {
        "context-guided": ContextRule(overlap=overlap),
        "context-guided-1.5": ContextRule(overlap=overlap, guidance_scale=1.5),
        "context-plain": ContextRule(overlap=overlap, guidance_scale=CONTINUING_GUIDANCE, bridge=0),
        "last-frame": ContextRule(overlap=1, guidance_scale=CONTINUING_GUIDANCE, bridge=0),
        "reshuffled-noise": ReshuffledNoise(overlap),
    }
    return {**{name: (rule, False) for name, rule in {**plain, **baselines}.items()}, **guarded}


@torch.no_grad()
def measure(
    pipeline: LatentVideoPipeline, rule: OverlapRule, guarded: bool, prompt: str, out: Path, arguments: Any
) -> dict[str, Any]:
    """Make one film and return what is compared of it, and its curves."""
    sampling = pipeline.sampling(
        rule=rule, num_inference_steps=arguments.steps, seeds=arguments.seed, guidance_scale=arguments.guidance
    )
    plan = pipeline.plan(arguments.frames, sampling)
    first, later = (pipeline.setting(sampling, [prompt], continues=continues) for continues in (False, True))
    drift = Drift(joins=[window.new_from for window in plan][1:])
    decoder, tail, reference, before = pipeline.autoencoder.film_decoder(), None, None, None
    goes_on: list[float] = []
    height, width = pipeline.default_size
    fps = as_rate(Fraction(pipeline.config.fps).limit_denominator(1001))
    seconds = []
    with VideoWriter(out, fps=fps, width=width, height=height, overwrite=True) as writer:
        for window in plan:
            start, setting = time.perf_counter(), later if window.index else first
            made = make_window(window, rule, sampling.solver, setting, tail)
            if reference is None:
                reference = Statistics.of(made.latents)
            elif guarded:
                made, _ = bring_back(made, reference, arguments.limit, rule=rule, levels=setting.levels)
            tail = made.tail
            frames = pipeline.decode_window(made, 0, decoder).cpu()
            seconds.append((time.perf_counter() - start) / window.num_new)
            if before is not None and len(frames) > 1:
                goes_on.append(
                    float(torch.cosine_similarity(before.flatten(), (frames[1] - frames[0]).flatten(), dim=0))
                )
            before = frames[-1] - frames[-2] if len(frames) > 1 else None
            drift.update(frames)
            writer.write(frames)
    return {
        **compared(drift),
        "goes_on": mean(goes_on or [1.0]),
        "seconds_per_frame": statistics.median(seconds),
        "drift": drift.report(),
    }


def compared(drift: Drift) -> dict[str, float]:
    """Return the numbers of the table that lie in the curves."""
    found, motion = drift.compute(), drift.clips[0].curves["motion"]
    edge = max(1, round(EDGE_SHARE * len(motion)))
    return {
        "seam": found.get("seam_ratio", 1.0),
        "seam_max": found.get("seam_ratio_max", 1.0),
        **{name: found[name] for name in ("luma_mean_slope", "saturation_slope", "sharpness_slope")},
        "motion_kept": mean(motion[-edge:]) / max(mean(motion[:edge]), 1e-6),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the comparison as a Markdown table."""
    lines = [f"| rule | {' | '.join(COLUMNS.values())} |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipeline = LatentVideoPipeline.from_pretrained(arguments.model, runtime=resolve_runtime(arguments.device))
    overlap = arguments.overlap or int(pipeline.config.overlap_rule["overlap"])
    asked = {"frames": arguments.frames, "steps": arguments.steps, "seed": arguments.seed, "overlap": overlap}
    asked |= {"guidance": arguments.guidance, "limit": arguments.limit, "model": Path(arguments.model).name}
    rows: dict[str, dict[str, float]] = {}
    for name, (rule, guarded) in rules(overlap).items():
        if arguments.only and name not in arguments.only:
            continue
        found = []
        for number, prompt in enumerate(arguments.prompt or PROMPTS):
            result = arguments.out / f"{name}-{number}.json"
            if not result.is_file() or json.loads(result.read_text(encoding="utf-8"))["asked"] != asked:
                made = measure(pipeline, rule, guarded, prompt, result.with_suffix(".mp4"), arguments)
                write_json(result, {"asked": asked, "rule": name, "prompt": prompt, **made})
            found.append(json.loads(result.read_text(encoding="utf-8")))
        rows[name] = {column: mean([run[column] for run in found]) for column in COLUMNS}
        print(table({name: rows[name]}).splitlines()[-1], flush=True)
    write_json(arguments.out / "table.json", {"asked": asked, "columns": COLUMNS, "rules": rows})
    with atomic_path(arguments.out / "table.md") as beside:
        beside.write_text(table(rows), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, help="of all windows; the model's own if not given")
    parser.add_argument("--overlap", type=int, help="the model's own if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=0.1, help="of the drift guard, in spreads of the latents")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--only", nargs="+", metavar="RULE")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
