"""Computes the table by which skies are measured, from seeded renders, and says how often it is right on fresh ones."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from latentvid.core.rng import Rng
from latentvid.data.worlds import sky
from latentvid.data.worlds.measure import features, measure
from latentvid.data.worlds.sky_captions import COVERS, GROUNDS, TIMES

TABLE = Path(__file__).parent.parent / "latentvid/data/worlds/sky_prototypes.py"
HEADER = '''"""Mean features of rendered skies by what they show, in thousandths, and their spread within a kind.

The columns are those of `measure.features`; `scripts/fit_sky_measure.py` writes this file.
"""

from __future__ import annotations

'''


@dataclass(frozen=True)
class Sample:
    scene: sky.SkyScene
    clip: torch.Tensor


def samples(name: str, count: int, size: int) -> list[Sample]:
    scenes = [sky.sample_scene(Rng(0).child(f"{name}/{i}")) for i in range(count)]
    return [Sample(scene, torch.from_numpy(sky.render(scene, 16, size, size))) for scene in scenes]


def fit(data: list[Sample]) -> str:
    read = [features(sample.clip) for sample in data]
    text = HEADER
    tables = (("SKY", 0, COVERS, "cloud_cover"), ("GROUND", 1, GROUNDS, "ground"))
    for title, column, kinds, attribute in tables:
        groups = {f"{time} {kind}": [] for time in TIMES for kind in kinds}
        for sample, values in zip(data, read, strict=True):
            groups[f"{sample.scene.time_of_day} {getattr(sample.scene, attribute)}"].append(values[column])
        within = np.sqrt(np.mean([np.var(group, axis=0) for group in groups.values()], axis=0))
        text += f"{title}: dict[str, tuple[int, ...]] = {{\n    {row('spread', within)}"
        text += "".join("    " + row(name, np.mean(group, axis=0)) for name, group in groups.items()) + "}\n"
    return text


def row(name: str, values: np.ndarray) -> str:
    numbers = ", ".join(str(max(1, round(1000 * float(v)))) for v in values)
    return f'"{name}": ({numbers}),\n'


def accuracy(data: list[Sample], *, blur: bool = False) -> dict[str, float]:
    right = {"time_of_day": 0, "ground": 0, "cloud_cover": 0, "wind_direction": 0}
    errors = []
    for sample in data:
        clip = sample.clip
        if blur:
            half = F.interpolate(clip.float(), scale_factor=0.5, mode="area")
            clip = F.interpolate(half, clip.shape[-2:], mode="bilinear").round().to(torch.uint8)
        reading = measure(clip)
        for name in right:
            right[name] += reading[name] == getattr(sample.scene, name)  # type: ignore[literal-required]
        errors.append(abs(reading["wind_px_per_frame"] / clip.shape[-1] / sample.scene.wind - 1))
    return {name: n / len(data) for name, n in right.items()} | {"wind_relative_error": float(np.median(errors))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=int, default=1200, metavar="N", help="scenes to fit on; 0 keeps the table")
    parser.add_argument("--check", type=int, default=400, metavar="N", help="fresh scenes to check on, per size")
    options = parser.parse_args()
    if options.fit:
        TABLE.write_text(fit(samples("fit", options.fit, 64)), encoding="utf-8")
    for size in (64, 96, 128):
        data = samples(f"check/{size}", options.check, size)
        print(size, accuracy(data))
        print(size, "blurred", accuracy(data, blur=True))


if __name__ == "__main__":
    main()
