"""PSNR, SSIM and flicker against closed forms, other implementations, and their own laws."""

from __future__ import annotations

import math

import kornia
import pytest
import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.curve import PsnrCurve
from latentvid.metrics.flicker import Flicker
from latentvid.metrics.metric import Metric
from latentvid.metrics.psnr import CAP_DB, Psnr
from latentvid.metrics.ssim import Ssim


def _run(metric: Metric, video: Tensor, reference: Tensor) -> dict[str, float]:
    metric.update(video, reference)
    return metric.compute()


def test_psnr_of_a_constant_offset_is_the_closed_form() -> None:
    offsets = [2.0, 10.0]  # 8-bit levels
    video = torch.stack([torch.full((3, 16, 16), offset / 127.5) for offset in offsets])
    result = _run(Psnr(), video, torch.zeros_like(video))
    each = [20 * math.log10(255 / offset) for offset in offsets]
    assert result["psnr"] == pytest.approx(sum(each) / 2, abs=1e-4)
    assert result["psnr_pooled"] == pytest.approx(10 * math.log10(255**2 / ((4 + 100) / 2)), abs=1e-4)


def test_psnr_agrees_with_kornia(source: Tensor, noise: Tensor) -> None:
    video = (source + 0.1 * noise).clamp(-1, 1)
    witness = [float(kornia.metrics.psnr(x, y, max_val=2.0)) for x, y in zip(video, source, strict=True)]
    assert _run(Psnr(), video, source)["psnr"] == pytest.approx(sum(witness) / len(witness), abs=1e-3)


def test_psnr_of_identical_frames_is_the_cap(source: Tensor) -> None:
    assert _run(Psnr(), source, source) == {"psnr": CAP_DB, "psnr_pooled": CAP_DB}


def test_psnr_measures_what_a_file_would_show() -> None:
    """Values beyond the range are clamped as the writer does, so overshoot at white costs nothing."""
    white = torch.ones(1, 3, 16, 16)
    assert _run(Psnr(), white * 1.3, white)["psnr"] == CAP_DB


def test_the_curve_is_psnr_by_index_and_shows_a_beat(source: Tensor, noise: Tensor) -> None:
    strength = torch.tensor([0.2 if t % 4 == 0 else 0.05 for t in range(13)])[:, None, None, None]
    video = (source + strength * noise).clamp(-1, 1)
    metric = PsnrCurve(period=4)
    result = _run(metric, video, source)
    assert metric.curve() == [_run(Psnr(), video[t : t + 1], source[t : t + 1])["psnr"] for t in range(13)]
    assert result["curve_phase_spread"] == pytest.approx(20 * math.log10(4), abs=1)
    even = PsnrCurve(period=4)
    assert _run(even, (source + 0.1 * noise).clamp(-1, 1), source)["curve_phase_spread"] < 0.5


def test_the_curve_averages_only_clips_that_are_long_enough(source: Tensor) -> None:
    metric = PsnrCurve()
    metric.update(source[:2], source[:2])
    metric.end_clip()
    metric.update(source[:5], source[:5])
    assert metric.curve() == [CAP_DB] * 5


def test_ssim_of_identical_frames_is_one(source: Tensor) -> None:
    assert _run(Ssim(), source, source)["ssim"] == pytest.approx(1, abs=1e-12)
    black = torch.full((1, 3, 16, 16), -1.0)
    assert _run(Ssim(), black, black)["ssim"] == pytest.approx(1, abs=1e-12)


def test_ssim_of_flat_frames_is_the_closed_form() -> None:
    """Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 100.0, 150.0, (0.01 * 255) ** 2
    video, reference = (torch.full((1, 3, 16, 16), value / 127.5 - 1) for value in (a, b))
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert _run(Ssim(), video, reference)["ssim"] == pytest.approx(expected, abs=1e-5)


def test_ssim_refuses_frames_below_its_window() -> None:
    with pytest.raises(UsageError, match="11x11"):
        Ssim().update(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


@pytest.mark.parametrize(("metric", "key", "sign"), [(Psnr, "psnr", -1), (Ssim, "ssim", -1), (Flicker, "flicker", 1)])
def test_more_noise_is_worse(metric: type, key: str, sign: int, source: Tensor, noise: Tensor) -> None:
    values = [sign * _run(metric(), (source + s * noise).clamp(-1, 1), source)[key] for s in (0.02, 0.05, 0.1, 0.2)]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_flicker_ignores_what_stands_still(source: Tensor, noise: Tensor) -> None:
    """A constant error does not flicker, however large."""
    result = _run(Flicker(), source * 0.5 + 0.1 * noise[:1], source * 0.5)
    assert result["flicker"] == pytest.approx(0, abs=1e-4)
    assert _run(Psnr(), source * 0.5 + 0.1 * noise[:1], source * 0.5)["psnr"] < 30


def test_flicker_of_an_alternating_offset_is_the_closed_form(source: Tensor) -> None:
    sign = torch.tensor([(-1.0) ** t for t in range(len(source))])[:, None, None, None]
    result = _run(Flicker(), source * 0.5 + sign * 3 / 127.5, source * 0.5)
    assert result["flicker"] == pytest.approx(6, abs=1e-4)
    assert result["flicker_static"] == pytest.approx(6, abs=1e-4)


def test_flicker_parts_make_the_whole_and_lie_where_the_error_is(source: Tensor, noise: Tensor) -> None:
    video = source * 0.8
    only_left = noise.clone()
    only_left[..., 32:] = 0
    result = _run(Flicker(), video + 0.1 * only_left, video)
    share = result["static_share"]
    assert 0.5 <= share < 0.8  # the left half stands still, and flat spots of the right one
    assert result["flicker"] == pytest.approx(
        share * result["flicker_static"] + (1 - share) * result["flicker_moving"], rel=1e-9
    )
    assert result["flicker_moving"] == pytest.approx(0, abs=1e-4)
    assert result["flicker_static"] > 5


def test_flicker_leaves_out_what_is_not_there(source: Tensor) -> None:
    still = source[:1].expand(4, -1, -1, -1)
    result = _run(Flicker(), still, still)
    assert result == {"flicker": 0.0, "static_share": 1.0, "flicker_static": 0.0}
