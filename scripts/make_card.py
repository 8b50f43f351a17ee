"""Write a checkpoint's model card from its metrics.json, so that no figure in it is typed by hand.

python scripts/make_card.py checkpoints/sky
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from latentvid.core.checkpoints import read_header
from latentvid.core.files import atomic_path

CARD = """---
license: apache-2.0
library_name: latentvid
tags: [text-to-video, latent-diffusion]
---

# The sky model

A small latent video diffusion model of skies, made by this project alone: its training data is the procedural world in
`latentvid/data/worlds`, so nothing was downloaded and nothing is owed to anyone. {size} pixels, windows of {frames}
frames, {fps:g} frames per second, {parameters:.1f} million parameters.

It knows skies and nothing else: time of day (dawn, day, dusk, night), ground (hills, mountains, sea, desert, forest),
cloud cover (clear, scattered, overcast), wind (to the left, to the right, slow, fast). Prompt it in these words, for
example `scattered clouds, slow wind to the left, over hills at dusk`.

## How it was made

`python scripts/train_sky.py runs/sky --checkpoint checkpoints/sky`, on two CPU cores, in bf16 arithmetic:

| stage | steps | seed | held-out figures at its end |
|---|---:|---:|---|
{stages}

Noise prior: {prior}. Weights are stored in half precision. {notes}

## How good it is

{num_clips} clips were made from prompts that name every attribute, and what they show was read back from their pixels
(`scripts/measure_sky.py`; {sampling}). The reader itself is right in 99 % or more of rendered clips; for cloud cover,
in 85 %.

| asked for | shown as asked | by chance |
|---|---:|---:|
{attributes}

{films}
## Failures seen

{failures}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    folder = parser.parse_args().checkpoint
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    with atomic_path(folder / "README.md") as beside:
        beside.write_text(card(folder, metrics), encoding="utf-8")


def card(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the text of the card."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    factor = 2 ** (len(vae["image_autoencoder"]["block_out_channels"]) - 1)
    prior = json.loads(next((folder / "noise_prior").glob("*.json")).read_text(encoding="utf-8"))
    samples = metrics["samples"]
    return CARD.format(
        size=f"{unet['sample_size'] * factor}x{unet['sample_size'] * factor}",
        frames=index["num_frames"],
        fps=index["fps"],
        parameters=sum(read_header(file).num_parameters for file in folder.rglob("*.safetensors")) / 1e6,
        stages="\n".join(_stage(name, stage) for name, stage in metrics["training"].items()),
        prior=f"{prior['_class_name']}, alpha {prior.get('alpha')}",
        notes=" ".join(metrics.get("notes", [])),
        num_clips=samples["num_clips"],
        sampling=", ".join(f"{key} {value}" for key, value in samples["sampling"].items()),
        attributes="\n".join(
            f"| {name.replace('_', ' ')} | {figures['right']:.0%} | {figures['chance']:.0%} |"
            for name, figures in samples["attributes"].items()
        ),
        films=_films(metrics.get("films", {})),
        failures="\n".join(f"- {failure}" for failure in metrics.get("failures", ["None written down."])),
    )


def _stage(name: str, stage: dict[str, Any]) -> str:
    figures = ", ".join(f"{key} {value:.4g}" for key, value in (stage["validation"] or {}).items())
    return f"| {name} | {stage['steps']} | {stage['seed']} | {figures} |"


def _films(films: dict[str, dict[str, float]]) -> str:
    if not films:
        return ""
    wanted = {
        "seam_ratio": "seam step / neighbours",
        "luma_mean_slope": "luma slope per 100 frames",
        "saturation_slope": "saturation slope",
        "sharpness_change": "sharpness change",
        "motion": "motion",
        "seconds_per_frame": "s per frame",
    }
    head = "| overlap rule | " + " | ".join(wanted.values()) + " |\n|---|" + "---:|" * len(wanted)
    rows = [f"| {n} | " + " | ".join(f"{f.get(k, float('nan')):.3g}" for k in wanted) + " |" for n, f in films.items()]
    return "Films, by overlap rule (float32, two CPU cores):\n\n" + "\n".join([head, *rows]) + "\n"


if __name__ == "__main__":
    main()
