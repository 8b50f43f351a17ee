"""What holds for every registered metric."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics import METRICS
from latentvid.metrics.metric import Metric


def _moments(clip: Tensor) -> Tensor:
    """Features of a clip [1 3 t h w]: mean and spread per channel, and mean step, [1 7]."""
    step = clip.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))
    return torch.cat([clip.mean(dim=(2, 3, 4)), clip.std(dim=(2, 3, 4)), step[:, None]], dim=1)


OPTIONS: dict[str, dict[str, Any]] = {
    "curve": {"period": 4},
    "seam": {"joins": [5], "every": 4, "num_neighbours": 3},
    "drift": {"joins": [5]},
    "frechet": {"extractor": _moments, "num_frames": 3, "stride": 2},
}


@pytest.fixture(params=list(METRICS))
def metric(request: pytest.FixtureRequest) -> Metric:
    options = OPTIONS.get(request.param, {})
    if request.param == "lpips":
        trunk = request.getfixturevalue("assets") / "weights/squeezenet1_1/features.safetensors"
        options = {"trunk": trunk}
    return METRICS.get(request.param)(**options)


def _feed(metric: Metric, video: Tensor, reference: Tensor, chunks: list[int]) -> None:
    assert sum(chunks) == len(video)
    for x, y in zip(video.split(chunks), reference.split(chunks), strict=True):
        metric.update(x, y)


def test_chunking_never_changes_the_result(metric: Metric, source: Tensor, noise: Tensor) -> None:
    video = (source + 0.1 * noise).clamp(-1, 1)
    results = []
    for chunks in ([13], [1] * 13, [5, 0, 8], [2, 7, 4]):
        metric.reset()
        _feed(metric, video, source, chunks)
        metric.end_clip()
        _feed(metric, source[:9].flip(0), video[:9].flip(0), [9] if len(chunks) == 1 else [4, 5])
        results.append(metric.compute())
    assert results[0]
    assert all(result == results[0] for result in results[1:])


def test_clips_do_not_touch(metric: Metric, source: Tensor, noise: Tensor) -> None:
    """Two equal clips give each result's own value again: nothing is differenced across the border."""
    video = (source + 0.1 * noise).clamp(-1, 1)
    metric.update(video, source)
    once = metric.compute()
    metric.end_clip()
    metric.end_clip()
    metric.update(video, source)
    twice = metric.compute()
    counts = {"frechet", "frechet_clips", "frechet_reference_clips"}  # unbiased covariances and counts do change
    assert {k: v for k, v in twice.items() if k not in counts} == pytest.approx(
        {k: v for k, v in once.items() if k not in counts}, rel=1e-12, abs=1e-12
    )


def test_compute_changes_nothing(metric: Metric, source: Tensor, noise: Tensor) -> None:
    video = (source + 0.1 * noise).clamp(-1, 1)
    metric.update(video[:6], source[:6])
    metric.compute()
    metric.update(video[6:], source[6:])
    watched = metric.compute()
    metric.reset()
    assert metric.compute() == {}
    metric.update(video, source)
    assert metric.compute() == watched


def test_the_video_is_not_changed(metric: Metric, source: Tensor) -> None:
    before = source.clone()
    metric.update(source, source)
    assert torch.equal(source, before)


def test_results_and_protocol_are_json(metric: Metric, source: Tensor) -> None:
    assert isinstance(metric, Metric)
    metric.update(source, source)
    result = metric.compute()
    assert all(type(value) is float for value in result.values())
    json.dumps({"result": result, "protocol": metric.protocol()}, allow_nan=False)


def test_one_frame_and_no_frame(metric: Metric, source: Tensor) -> None:
    metric.update(source[:0], source[:0])
    assert metric.compute() == {}
    metric.update(source[:1], source[:1])
    json.dumps(metric.compute(), allow_nan=False)


@pytest.mark.parametrize("shape", [(3, 48, 64), (2, 4, 48, 64), (1, 2, 3, 48, 64)])
def test_other_shapes_are_refused(metric: Metric, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\[t 3 h w\]"):
        metric.update(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("kind", ["psnr", "curve", "ssim", "flicker"])
def test_a_comparison_needs_its_reference(kind: str, source: Tensor) -> None:
    metric = METRICS.get(kind)()
    with pytest.raises(UsageError, match="reference"):
        metric.update(source)
    with pytest.raises(UsageError, match="trim or resize"):
        metric.update(source, source[:-1])


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'psnr'"):
        METRICS.get("pnsr")
