"""Drift: how colour, contrast, sharpness, motion and seams of a long video develop. Needs no weights and no source.

Long videos made window by window tend to darken, saturate, soften, freeze, or jump at the joins; each of these is
one curve here, and its slope is one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.files import atomic_path, write_json
from latentvid.metrics.metric import check_video, eight_bit, mean
from latentvid.metrics.plot import Panel, Series, line_chart
from latentvid.metrics.seam import SeamStep, frame_step, joins_of, seam_steps

CURVES = {
    "luma_mean": "mean of luma Y",
    "luma_spread": "standard deviation of Y: contrast",
    "cb_mean": "mean of Cb - 128: blue against yellow",
    "cb_spread": "standard deviation of Cb",
    "cr_mean": "mean of Cr - 128: red against green",
    "cr_spread": "standard deviation of Cr",
    "saturation": "mean distance from grey in the CbCr plane",
    "sharpness": "variance of the Laplacian of Y",
    "high_frequency": "root mean square of Y above a quarter cycle per pixel",
    "motion": "mean absolute difference from the frame before",
}
"""The curves and what they measure; 8-bit scale, BT.709 Y'CbCr at full range."""

EDGE_SHARE = 0.15
"""`change` compares the means of the first and the last such share of a clip."""


@dataclass(slots=True)
class Clip:
    """The curves of one clip: one value per frame, but `motion`, which starts at frame 1."""

    curves: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CURVES})

    @property
    def num_frames(self) -> int:
        return len(self.curves["luma_mean"])

    def seams(self, joins: Sequence[int], every: int | None, num_neighbours: int) -> list[SeamStep]:
        """Measure the clip's joins."""
        at = joins_of(self.num_frames, joins, every)
        return seam_steps(self.curves["motion"], at, num_neighbours=num_neighbours)


class Drift:
    """Curves along each clip; `compute` gives of each its mean under its own name, its `_slope` (per 100 frames) and
    its `_change` (mean of the last 15 % less that of the first), averaged over clips, and the seams at the joins.
    A reference is ignored.

    Args:
        joins: indices of the first frame behind each join, in every clip.
        every: or the window stride: joins at its multiples.
        num_neighbours: steps on either side of a join to compare it with.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(self, *, joins: Sequence[int] = (), every: int | None = None, num_neighbours: int = 8) -> None:
        if (every is not None and every < 1) or num_neighbours < 1:
            raise UsageError(f"drift: every={every} and num_neighbours={num_neighbours} must be at least 1.")
        self.joins, self.every, self.num_neighbours = tuple(joins), every, num_neighbours
        self.reset()

    def reset(self) -> None:
        self._clips = [Clip()]
        self._previous: Tensor | None = None

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        check_video(video)
        for frame in video:
            frame = eight_bit(frame)
            for name, value in frame_statistics(frame).items():
                self._clips[-1].curves[name].append(value)
            if self._previous is not None:
                self._clips[-1].curves["motion"].append(frame_step(frame, self._previous))
            self._previous = frame

    def add_curves(self, curves: Mapping[str, Sequence[float]]) -> None:
        """Go on with values that were measured elsewhere, `motion` into their first frame included."""
        for name, values in curves.items():
            self._clips[-1].curves[name].extend(values)

    def end_clip(self) -> None:
        self._previous = None
        if self._clips[-1].num_frames:
            self._clips.append(Clip())

    @property
    def clips(self) -> list[Clip]:
        """The clips seen so far, the open one included."""
        return [clip for clip in self._clips if clip.num_frames]

    def compute(self) -> dict[str, float]:
        clips = self.clips
        result: dict[str, float] = {}
        for name in CURVES:
            curves = [clip.curves[name] for clip in clips if clip.curves[name]]
            if curves:
                result[name] = mean([mean(curve) for curve in curves])
                result[f"{name}_slope"] = mean([slope(curve) for curve in curves])
                result[f"{name}_change"] = mean([change(curve) for curve in curves])
        seams = [seam for clip in clips for seam in self._seams(clip)]
        if seams:
            result["seam_ratio"] = mean([seam.ratio for seam in seams])
            result["seam_ratio_max"] = max(seam.ratio for seam in seams)
        return result

    def protocol(self) -> dict[str, Any]:
        return {
            "curves": dict(CURVES),
            "scale": "8-bit, BT.709 Y'CbCr, full range",
            "slope": "least squares, per 100 frames",
            "change": f"mean of the last {EDGE_SHARE:.0%} of frames less that of the first",
            "joins": list(self.joins),
            "every": self.every,
            "num_neighbours": self.num_neighbours,
        }

    def report(self) -> dict[str, Any]:
        """Return everything as JSON-able data: summary, protocol, and per clip its curves and seams."""
        clips = [
            {
                "num_frames": clip.num_frames,
                "curves": {
                    name: {"first_frame": _first_frame(name), "values": [float(f"{v:.6g}") for v in values]}
                    for name, values in clip.curves.items()
                },
                "seams": [
                    {"frame": s.frame, "step": s.step, "neighbours": s.neighbours, "ratio": s.ratio}
                    for s in self._seams(clip)
                ],
            }
            for clip in self.clips
        ]
        return {"summary": self.compute(), "protocol": self.protocol(), "clips": clips}

    def write_json(self, path: str | Path) -> None:
        """Write `report` to a file."""
        write_json(path, self.report())

    def write_png(self, path: str | Path, *, clip: int = -1, title: str = "", overwrite: bool = True) -> None:
        """Draw the curves of one clip (the last, unless told) with its joins marked, as a PNG.

        Raises:
            UsageError: no frame was seen yet.
        """
        if not self.clips:
            raise UsageError("drift: nothing to draw, no frame was seen.")
        chosen = self.clips[clip]
        marks = [seam.frame for seam in self._seams(chosen)]
        picture = line_chart(drift_panels(chosen.curves, marks), title=title, panel_height=104)
        with atomic_path(path, overwrite=overwrite) as beside:
            picture.save(beside, format="PNG", optimize=True)

    def _seams(self, clip: Clip) -> list[SeamStep]:
        return clip.seams(self.joins, self.every, self.num_neighbours)


def frame_statistics(frame: Tensor) -> dict[str, float]:
    """Return all curves' values but motion for one frame, [3 h w] on the 8-bit scale."""
    luma, cb, cr = to_ycbcr(frame.double())
    return {
        "luma_mean": float(luma.mean()),
        "luma_spread": float(luma.std(correction=0)),
        "cb_mean": float(cb.mean()),
        "cb_spread": float(cb.std(correction=0)),
        "cr_mean": float(cr.mean()),
        "cr_spread": float(cr.std(correction=0)),
        "saturation": float((cb.square() + cr.square()).sqrt().mean()),
        "sharpness": laplacian_variance(luma),
        "high_frequency": high_frequency_rms(luma),
    }


def to_ycbcr(frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return BT.709 Y' in [0, 255] and Cb, Cr in [-127.5, 127.5], each [h w], of R'G'B' [3 h w] in [0, 255]."""
    red, green, blue = frame
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luma, (blue - luma) / 1.8556, (red - luma) / 1.5748


def laplacian_variance(luma: Tensor) -> float:
    """Return the variance of the 4-neighbour Laplacian of [h w], borders left out; 0 below 3x3."""
    if min(luma.shape) < 3:
        return 0.0
    middle = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(laplacian.var(correction=0))


def high_frequency_rms(luma: Tensor) -> float:
    """Return the root mean square of the part of [h w] above a quarter cycle per pixel (half of Nyquist).

    A Hann window keeps the jump between opposite borders out; its own power is divided away.
    """
    height, width = luma.shape
    window = torch.outer(_hann(height).to(luma), _hann(width).to(luma))
    power = torch.fft.fft2((luma - luma.mean()) * window).abs().square() / luma.numel()
    rows = torch.fft.fftfreq(height, dtype=luma.dtype, device=luma.device)[:, None]
    columns = torch.fft.fftfreq(width, dtype=luma.dtype, device=luma.device)[None]
    is_high = rows.square() + columns.square() > 0.25**2
    return float((power[is_high].sum() / window.square().sum()).sqrt())


def slope(curve: Sequence[float]) -> float:
    """Return the least-squares slope of a curve per 100 frames; 0 for a single frame.

    >>> round(slope([1.0, 1.5, 2.0]), 6)
    50.0
    """
    if len(curve) < 2:
        return 0.0
    values = torch.tensor(curve, dtype=torch.float64)
    x = torch.arange(len(values), dtype=torch.float64)
    x = x - x.mean()
    return float(100 * (x * values).sum() / x.square().sum())


def change(curve: Sequence[float]) -> float:
    """Return the mean of the last `EDGE_SHARE` of a curve less that of its first (at least one frame each)."""
    edge = max(1, round(len(curve) * EDGE_SHARE))
    return mean(list(curve[-edge:])) - mean(list(curve[:edge]))


def drift_panels(curves: Mapping[str, Sequence[float]], marks: Sequence[int] = ()) -> list[Panel]:
    """Return the chart panels of one clip's curves, with joins marked."""
    groups = {
        "brightness (Y, 0-255)": {"mean": "luma_mean"},
        "contrast (spread of Y)": {"spread": "luma_spread"},
        "colour (Cb, Cr; 0 is grey)": {"Cb": "cb_mean", "Cr": "cr_mean"},
        "colour spread and saturation": {
            "Cb spread": "cb_spread",
            "Cr spread": "cr_spread",
            "saturation": "saturation",
        },
        "sharpness (variance of the Laplacian)": {"sharpness": "sharpness"},
        "high frequencies (RMS)": {"high": "high_frequency"},
        "motion (mean frame difference)": {"motion": "motion"},
    }
    return [
        Panel(title, [Series(label, curves[name], _first_frame(name)) for label, name in lines.items()], marks)
        for title, lines in groups.items()
    ]


def _hann(length: int) -> Tensor:
    # The two points more, cut off, keep the window from being zero where a side is very short.
    return torch.hann_window(length + 2, periodic=False, dtype=torch.float64)[1:-1]


def _first_frame(name: str) -> int:
    return 1 if name == "motion" else 0
