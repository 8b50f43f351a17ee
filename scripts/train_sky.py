"""Train the shipped sky model from nothing: autoencoder, temporal decoder, images, videos, and what videos lack.

    python scripts/train_sky.py runs/sky --checkpoint checkpoints/sky

Every stage is an ordinary `latentvid train` run of a config in configs/train, resumes where it stopped, and is
skipped once it is exported. Two CPU cores with bf16 arithmetic take about three and a half hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from latentvid.autoencoders.load import load_autoencoder
from latentvid.core.files import write_json
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training import recipes

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
STAGES = ("autoencoder", "decoder", "images", "videos", "words", "motion", "continuation", "balance")
SHARD = "12MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs go (runs/sky is what the configs expect)")
    parser.add_argument("--checkpoint", type=Path, help="write the finished pipeline here")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for stage in arguments.stages:
        run_stage(stage, arguments.folder / stage)
    if arguments.checkpoint:
        assemble(arguments.folder, arguments.checkpoint)


def run_stage(stage: str, folder: Path) -> None:
    """Train one stage, unless it is exported already."""
    if any((folder / "export").glob("*.json")):
        print(f"{stage}: exported already")
        return
    recipe = recipes.load_recipe(CONFIGS / f"sky_{stage}.yaml")
    began = time.monotonic()

    def show(record: dict[str, Any]) -> None:
        print(f"{stage} {time.monotonic() - began:6.0f} s", json.dumps(record), flush=True)

    def prepared(done: int, total: int) -> None:
        print(f"{stage}: {done} of {total} clips encoded", flush=True)

    recipes.run(recipe, folder, resume=True, on_record=show, on_prepared=prepared)


def assemble(runs: Path, checkpoint: Path) -> None:
    """Join the video model with the finetuned decoder; half precision on disk, since float32 would gain nothing."""
    pipeline = LatentVideoPipeline.from_pretrained(runs / "balance" / "export")
    decoder = runs / "decoder" / "export"
    pipeline.register_modules(vae=load_autoencoder(decoder))
    pipeline.register_to_config(overlap_rule={"kind": "context", "overlap": 8, "guidance_scale": 1.0})
    pipeline.unet.half()
    pipeline.text_encoder.half()
    shutil.rmtree(checkpoint, ignore_errors=True)
    pipeline.save_pretrained(checkpoint, max_shard_size=SHARD)
    write_json(checkpoint / "metrics.json", collect_metrics(runs))
    print(f"wrote {checkpoint}; now run scripts/measure_sky.py on it")


def collect_metrics(runs: Path) -> dict[str, Any]:
    """Return each stage's last validation and its loop's settings, from the runs' logs."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        log = runs / stage / "log.jsonl"
        if log.exists():
            records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            last = [r["validation"] for r in records if "validation" in r]
            loop = json.loads((runs / stage / "loop.json").read_text(encoding="utf-8"))
            found[stage] = {"steps": loop["steps"], "seed": loop["seed"], "validation": last[-1] if last else None}
    return {"training": found}


if __name__ == "__main__":
    main()
