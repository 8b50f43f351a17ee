"""The drift guard: what it measures, what it changes, and that it leaves resuming exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentvid.core.errors import PartialFailure
from latentvid.core.files import sha256_of
from latentvid.core.levels import NoiseSchedule
from latentvid.extension.guard import Statistics, bring_back
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rollout import MadeWindow
from latentvid.extension.rules import ContextRule, OverlapRule, ReuseRule, Tail
from latentvid.film.extend import extend_clip
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.guard import scene_start
from latentvid.film.make import Progress
from latentvid.film.prompts import PromptSchedule
from latentvid.film.resume import resume_film
from latentvid.film.settings import FilmSettings
from latentvid.metrics.shift import in_words, shifts
from latentvid.pipeline import LatentVideoPipeline
from tests.film.test_extend import write_clip
from tests.film.test_generate import Stop, stop_in
from tests.film.tiny import STEPS, hashes

LEVELS = NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}).levels(4)
REFERENCE = Statistics(torch.zeros(1, 2, 1, 1, 1), torch.ones(1, 2, 1, 1, 1))


def made_window(mean: float, spread: float, *, overlap: int = 2, frames: int = 6) -> MadeWindow:
    latents = mean + spread * torch.randn(1, 2, frames, 8, 8, generator=torch.Generator().manual_seed(0))
    trajectory = torch.randn(3, 1, 2, overlap, 8, 8, generator=torch.Generator().manual_seed(1))
    return MadeWindow(FilmPlan(frames, frames, 1)[0], latents, Tail(latents[:, :, -overlap:], latents, trajectory))


@pytest.mark.parametrize(("mean", "spread"), [(3.0, 1.0), (0.0, 4.0), (-2.0, 0.1)])
def test_what_drifted_ends_within_the_limit_and_begins_as_it_was(mean: float, spread: float) -> None:
    made = made_window(mean, spread, frames=100)
    new = bring_back(made, REFERENCE, 0.5, rule=ContextRule(overlap=2), levels=LEVELS)
    assert new.is_corrected
    assert (new.latents[:, :, 0] - made.latents[:, :, 0]).abs().max() < 0.015 * (made.latents.abs().max() + 1)
    last = Statistics.of(new.latents[:, :, -1:])
    assert last.mean.abs().max() < 0.5 + 0.3
    assert (last.spread - 1).abs().max() < 0.65
    assert torch.equal(new.tail.latents, new.latents[:, :, -2:])
    assert not torch.equal(new.tail.latents, made.tail.latents)


def test_what_did_not_drift_is_not_touched() -> None:
    made = made_window(0.3, 1.2)
    assert bring_back(made, REFERENCE, 0.5, rule=ContextRule(overlap=2), levels=LEVELS) is made


@pytest.mark.parametrize("order", ["mirror", "chronological"])
def test_recorded_states_move_by_their_clean_part(order: str) -> None:
    rule = ReuseRule(overlap=2, order=order)  # type: ignore[arg-type]
    made = made_window(3.0, 2.0)
    new = bring_back(made, REFERENCE, 0.5, rule=rule, levels=LEVELS)
    moved = new.tail.latents - made.tail.latents
    if order == "mirror":
        moved = moved.flip(2)
    assert new.tail.trajectory is not None
    assert made.tail.trajectory is not None
    for i in range(3):
        change = new.tail.trajectory[i] - made.tail.trajectory[i]
        assert torch.allclose(change, LEVELS.alpha[i].float() * moved, atol=1e-5)
    assert new.tail.noise is made.tail.noise


def test_a_tail_longer_than_the_new_frames_keeps_its_front() -> None:
    made = made_window(3.0, 1.0, frames=2)
    long = MadeWindow(made.window, made.latents, Tail(torch.cat([made.latents * 0, made.latents], dim=2)))
    new = bring_back(long, REFERENCE, 0.5, rule=ContextRule(overlap=4), levels=LEVELS)
    assert torch.equal(new.tail.latents[:, :, :2], made.latents * 0)
    assert torch.equal(new.tail.latents[:, :, 2:], new.latents)


def test_shifts_are_shares() -> None:
    then = {"luma_mean": [100.0], "luma_spread": [20.0], "saturation": [2.0], "sharpness": [100.0, 400.0]}
    now = {"luma_mean": [90.0], "luma_spread": [25.0], "saturation": [4.0], "sharpness": [100.0]}
    assert in_words(shifts(now, then)) == "luma -10 %, contrast +25 %, saturation +25 %, sharpness -33 %"


def test_each_scene_has_its_own_first_window(pipeline: LatentVideoPipeline) -> None:
    plan = FilmPlan(32, 8, 2)
    base = {"film": "a.mp4", "num_frames": 32, "height": 8, "width": 8, "fps": "8", "model_fps": "8"}
    schedule = PromptSchedule(prompts={"0-13": "a", "14-": "b"})
    faded = FilmSettings(**base, rule=ContextRule(overlap=2), prompts=schedule)
    cut = faded.model_copy(update={"prompts": schedule.model_copy(update={"transition": "cut"})})
    assert [scene_start(faded, plan, k) for k in range(5)] == [0, 0, None, 3, 3]
    assert [scene_start(cut, plan, k) for k in range(5)] == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("rule", [ContextRule(overlap=3), ReuseRule(overlap=2)])
def test_a_corrected_film_resumes_exactly(pipeline: LatentVideoPipeline, tmp_path: Path, rule: OverlapRule) -> None:
    wanted = {"num_frames": 20, "rule": rule, "drift_guard": "correct", "drift_limit": 0.02, **STEPS}
    report = generate_film(pipeline, "clouds", tmp_path / "whole.mp4", **wanted)  # type: ignore[arg-type]
    assert "brought windows 1" in report.notes[0]
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", on_progress=stop_in(2), **wanted)  # type: ignore[arg-type]
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    generate_film(pipeline, "clouds", tmp_path / "free.mp4", num_frames=20, rule=rule, drift_guard="off", **STEPS)  # type: ignore[arg-type]
    free, guarded = (hashes(tmp_path / f"{name}.run", "windows/*.mp4") for name in ("free", "whole"))
    assert free["000000.mp4"] == guarded["000000.mp4"]
    assert free["000001.mp4"] != guarded["000001.mp4"]


def test_a_continued_clip_is_what_its_film_stays_like(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", width=32)
    report = extend_clip(
        pipeline, clip, tmp_path / "film.mp4", num_frames=8, drift_guard="correct", drift_limit=0.02, **STEPS
    )
    assert "brought windows 0, 1 back" in report.notes[-2] + report.notes[-1]


def test_stop_keeps_a_run_that_goes_on(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    wanted = {"num_frames": 20, "drift_limit": 0.0001, **STEPS}
    with pytest.raises(PartialFailure, match=r"window 1 lies beyond .* --drift-guard correct") as stopped:
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", drift_guard="stop", **wanted)  # type: ignore[arg-type]
    assert stopped.value.exit_code == 6
    assert RunFolder.open(tmp_path / "film.run").num_complete() == 1
    said: list[Progress] = []
    report = resume_film(tmp_path / "film.run", pipeline=pipeline, drift_guard="warn", on_progress=said.append)
    assert "windows 1, 2 lie more than" in report.notes[-1]
    assert sum(bool(at.warning) for at in said) == 1  # of the last window no call follows
    assert set(said[-1].shifts) == {"luma", "contrast", "saturation", "sharpness"}
    generate_film(pipeline, "clouds", tmp_path / "free.mp4", num_frames=20, drift_guard="off", **STEPS)
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "free.mp4")
