"""Learning curves of a finetuning as a picture: loss, PSNR and flicker against steps, stage after stage."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from latentvid.core.files import atomic_path
from latentvid.metrics.plot import Panel, Series, line_chart

AFTER, BEFORE, STILLS = "finetuned", "frame by frame", "single frames"


def write_curves(path: str | Path, runs: Mapping[str, Path]) -> None:
    """Write the curves of training runs, by stage, as PNG.

    Args:
        runs: folders with `log.jsonl`, in the order in which they were run.
    """
    with atomic_path(path) as beside:
        curves({name: read_log(folder / "log.jsonl") for name, folder in runs.items()}).save(
            beside, format="PNG", optimize=True
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return a log's records; a line that a kill has cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Image.Image:
    """Return the picture; dashed lines show where a stage begins.

    Args:
        logs: records of each stage, each counting its steps from 0.
    """
    lengths = [max((record["step"] for record in log), default=0) for log in logs.values()]
    starts = [0, *accumulate(lengths)]
    moved = [
        (start + record["step"], record) for start, log in zip(starts, logs.values(), strict=False) for record in log
    ]
    marks = tuple(starts[1:-1])
    validations = [(step, record["validation"]) for step, record in moved if "validation" in record]

    def line(label: str, key: str) -> Series:
        return _series(label, starts[-1], ((step, figures.get(key)) for step, figures in validations))

    losses = _series("loss", starts[-1], ((step, record.get("loss")) for step, record in moved))
    panels = [
        Panel("training loss (each stage has its own terms)" if len(logs) > 1 else "training loss", [losses], marks),
        Panel(
            "held-out crops: PSNR (dB)",
            [line(AFTER, "psnr"), line(BEFORE, "psnr_frame_by_frame"), line(STILLS, "image_psnr")],
            marks,
        ),
        Panel(
            "held-out crops: flicker (levels)", [line(AFTER, "flicker"), line(BEFORE, "flicker_frame_by_frame")], marks
        ),
    ]
    return line_chart(panels, title=", then ".join(logs), x_label="step", panel_height=170)


def _series(label: str, last: int, points: Iterable[tuple[int, float | None]]) -> Series:
    """Return a line through points at some of the steps 0 .. last; between them there is nothing to draw but it."""
    values = [math.nan] * (last + 1)
    for step, value in points:
        if value is not None:
            values[step] = value
    return Series(label, values)
