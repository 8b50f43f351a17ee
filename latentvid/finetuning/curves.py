"""Learning curves of a finetuning as a picture: loss and held-out figures against steps, a column for each stage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from latentvid.core.files import atomic_path
from latentvid.metrics.plot import Panel, Series, line_chart

AFTER, BEFORE, STILLS = "finetuned", "frame by frame", "single frames"
WIDTHS = (960, 640)
"""Of a stage that is alone, and of one among several, in pixels."""

Records = Sequence[Mapping[str, Any]]


def write_curves(path: str | Path, runs: Mapping[str, Path]) -> None:
    """Write the curves of training runs, by stage, as PNG.

    Args:
        runs: folders with `log.jsonl`, in the order in which they were run.
    """
    picture = curves({name: read_log(folder / "log.jsonl") for name, folder in runs.items()})
    with atomic_path(path) as beside:
        picture.save(beside, format="PNG", optimize=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return a log's records; a line that a kill has cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def curves(logs: Mapping[str, Records]) -> Image.Image:
    """Return the picture of the stages' records, side by side: each has its own terms of loss, and crops."""
    width = WIDTHS[min(len(logs), len(WIDTHS)) - 1]
    columns = [_column(name, records, width) for name, records in logs.items()]
    sheet = Image.new("RGB", (width * len(columns), max(column.height for column in columns)), "white")
    for k, column in enumerate(columns):
        sheet.paste(column, (k * width, 0))
    return sheet


def _column(stage: str, records: Records, width: int) -> Image.Image:
    validations = [{"step": r["step"], **r["validation"]} for r in records if "validation" in r]
    panels = [
        Panel("training loss", [_series("loss", "loss", records)]),
        Panel(
            "held-out crops: PSNR (dB)",
            [
                _series(AFTER, "psnr", validations),
                _series(BEFORE, "psnr_frame_by_frame", validations),
                _series(STILLS, "image_psnr", validations),
            ],
        ),
        Panel(
            "held-out crops: flicker (levels)",
            [_series(AFTER, "flicker", validations), _series(BEFORE, "flicker_frame_by_frame", validations)],
        ),
    ]
    if any("lpips" in record for record in validations):
        lines = [_series(AFTER, "lpips", validations), _series(BEFORE, "lpips_frame_by_frame", validations)]
        panels.append(Panel("held-out crops: LPIPS", lines))
    return line_chart(panels, title=stage, x_label="step", width=width, panel_height=170)


def _series(label: str, key: str, records: Records) -> Series:
    """Return the line through what some steps have; at the others there is no number."""
    values = [math.nan] * (1 + max((record["step"] for record in records), default=0))
    for record in records:
        if key in record:
            values[record["step"]] = record[key]
    return Series(label, values)
