"""Seams, drift and the charts: made with known steps and slopes, measured back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.drift import CURVES, Drift, change, frame_statistics, slope, to_ycbcr
from latentvid.metrics.plot import Panel, Series, line_chart, nice_ticks
from latentvid.metrics.seam import STILL, Seam, seam_steps


def _grey(levels: list[float]) -> Tensor:
    """Flat grey frames of these 8-bit levels."""
    return torch.stack([torch.full((3, 16, 16), level / 127.5 - 1) for level in levels])


def test_a_jump_at_a_join_is_measured_against_its_neighbours() -> None:
    levels = [100.0 + 2 * t + (10 if t >= 6 else 0) for t in range(12)]
    seam = Seam(joins=[6], num_neighbours=4)
    seam.update(_grey(levels))
    assert seam.compute() == pytest.approx(
        {"seam_ratio": 6, "seam_ratio_max": 6, "seam_step": 12, "seam_neighbours": 2}, rel=1e-4
    )


def test_other_joins_are_no_neighbours_and_those_outside_are_left_out() -> None:
    steps = [1.0, 9.0, 1.0, 9.0, 1.0]
    found = seam_steps(steps, [2, 4, 0, 6, 99], num_neighbours=3)
    assert [(s.frame, s.step, s.neighbours) for s in found] == [(2, 9.0, 1.0), (4, 9.0, 1.0)]
    assert seam_steps([5.0], [1]) == []


def test_a_still_scene_has_no_seam() -> None:
    assert seam_steps([0.0, STILL / 2, 0.0], [2])[0].ratio == 1


def test_a_film_without_joins_has_no_seams() -> None:
    seam = Seam()
    seam.update(_grey([1, 2, 3]))
    assert seam.compute() == {}


def test_drift_finds_the_slope_that_was_put_in() -> None:
    drift = Drift(joins=[10])
    drift.update(_grey([80 + 0.5 * t for t in range(20)]))
    result = drift.compute()
    assert result["luma_mean_slope"] == pytest.approx(50, rel=1e-4)
    assert result["luma_mean_change"] == pytest.approx(0.5 * 17, rel=1e-4)
    assert result["luma_mean"] == pytest.approx(80 + 0.5 * 9.5, rel=1e-4)
    assert result["motion"] == pytest.approx(0.5, rel=1e-3)
    assert result["seam_ratio"] == pytest.approx(1, rel=1e-3)
    assert result["saturation"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "curve", "sign"),
    [
        (lambda x: x * 0.5, "luma_spread", -1),
        (lambda x: x - 0.2, "luma_mean", -1),
        (lambda x: x.mean(1, keepdim=True) + 0.5 * (x - x.mean(1, keepdim=True)), "saturation", -1),
        (lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1), "sharpness", -1),
        (lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1), "high_frequency", -1),
        (lambda x: x[[0] * len(x)], "motion", -1),
        (lambda x: x + torch.tensor([0.0, 0.0, 0.2])[:, None, None], "cb_mean", 1),
        (lambda x: x + torch.tensor([0.2, 0.0, 0.0])[:, None, None], "cr_mean", 1),
    ],
)
def test_each_kind_of_decay_moves_its_curve(damage, curve: str, sign: int, source: Tensor, noise: Tensor) -> None:
    video = 0.6 * source + 0.05 * noise
    before, after = Drift(), Drift()
    before.update(video)
    after.update(damage(video))
    assert sign * (after.compute()[curve] - before.compute()[curve]) > 0.05 * abs(before.compute()[curve])


def test_colours_are_bt709() -> None:
    """Primaries against the standard's own figures."""
    red = torch.tensor([255.0, 0, 0], dtype=torch.float64)[:, None, None]
    luma, cb, cr = to_ycbcr(red)
    assert float(luma) == pytest.approx(0.2126 * 255)
    assert float(cr) == pytest.approx(127.5)
    assert float(cb) == pytest.approx(-0.2126 / 1.8556 * 255)


def test_high_frequencies_are_those_of_a_wave() -> None:
    """A wave of amplitude a has RMS a / sqrt(2), counted above a quarter cycle per pixel and not below."""
    x = torch.arange(128, dtype=torch.float64)
    for cycles, expected in ((0.375, 20 / 2**0.5), (0.125, 0.0)):
        wave = (128 + 20 * torch.cos(2 * torch.pi * cycles * x)).expand(3, 128, 128)
        assert frame_statistics(wave)["high_frequency"] == pytest.approx(expected, abs=0.02)


def test_slope_and_change_of_short_curves() -> None:
    assert slope([3.0]) == 0
    assert change([3.0]) == 0
    assert change([1.0, 4.0]) == 3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (35, 37)])
def test_any_size_has_finite_statistics(size: tuple[int, int]) -> None:
    drift = Drift()
    drift.update(torch.rand(3, 3, *size) * 2 - 1)
    json.dumps(drift.report(), allow_nan=False)


def test_drift_writes_its_report_and_picture(tmp_path: Path, source: Tensor) -> None:
    drift = Drift(joins=[5])
    drift.update(source)
    drift.end_clip()
    drift.write_json(tmp_path / "drift.json")
    drift.write_png(tmp_path / "drift.png", title="a clip")
    report = json.loads((tmp_path / "drift.json").read_text())
    clip = report["clips"][0]
    assert set(clip["curves"]) == set(CURVES)
    assert len(clip["curves"]["luma_mean"]["values"]) == clip["num_frames"] == len(source)
    assert clip["curves"]["motion"]["first_frame"] == 1
    assert [seam["frame"] for seam in clip["seams"]] == [5]
    with Image.open(tmp_path / "drift.png") as picture:
        assert picture.width == 960


def test_drift_of_nothing_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frame"):
        Drift().write_png(tmp_path / "drift.png")
    assert list(tmp_path.iterdir()) == []


def test_a_rising_line_rises_in_the_picture() -> None:
    picture = line_chart([Panel("p", [Series("s", [float(i) for i in range(101)])])], panel_height=150)
    blue = [
        (x, y)
        for x in range(picture.width)
        for y in range(picture.height)
        if (p := picture.getpixel((x, y)))[2] > p[0] + 80
    ]
    left = [y for x, y in blue if x < 200]
    right = [y for x, y in blue if x > picture.width - 150]
    assert min(left) > max(right)  # y counts downwards


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [0.0, float("nan"), 1.0], [1e-9, 2e-9], [1e9, 3e9]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    assert line_chart([Panel("p", [Series("a", values), Series("b", values[:1], 3)], marks=(1, 99))]).width == 960


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(-1, 1, 4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert nice_ticks(0.013, 0.0131, 4) == pytest.approx([0.013, 0.01305, 0.0131])
