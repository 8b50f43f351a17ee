"""One window made again: the others keep every byte, the neighbours' frames stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import UsageError
from latentvid.core.files import sha256_of
from latentvid.core.levels import Level, NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.extension.plan import Window
from latentvid.extension.rules import ContextRule, Setting
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.reroll import reroll_window, sample_between
from latentvid.film.resume import resume_film
from latentvid.noise import PRIORS
from latentvid.pipeline import LatentVideoPipeline, Sampling
from latentvid.sampling import SOLVERS
from latentvid.video.reader import open_video
from tests.film.tiny import STEPS, hashes

ROOT = Path(__file__).resolve().parents[2]


def off_by(frame: Any) -> Any:
    return 3.0 + 0.5 * frame


@pytest.mark.parametrize("rule", [{"kind": "context", "overlap": 2}, {"kind": "reuse", "overlap": 2}])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_only_that_window_changes(
    pipeline: LatentVideoPipeline, tmp_path: Path, rule: dict[str, object], index: int
) -> None:
    out, run = tmp_path / "film.mp4", tmp_path / "film.run"
    generate_film(pipeline, "clouds", out, num_frames=24, rule=rule, **STEPS)
    segments, latents = hashes(run, "windows/*.mp4"), LatentFile(run / f"windows/{index:06d}.safetensors").read()
    report = reroll_window(run, index, prompt="sea at night", pipeline=pipeline)
    again = hashes(run, "windows/*.mp4")
    assert [name for name in segments if segments[name] != again[name]] == [f"{index:06d}.mp4"]
    new = LatentFile(run / f"windows/{index:06d}.safetensors").read()
    stays = 2 if index < 3 else 0
    count = new.shape[1] - stays
    assert torch.equal(new[:, count:], latents[:, count:])
    assert not torch.isclose(new[:, :count], latents[:, :count]).flatten(2).all(2).any()
    with open_video(out) as reader:
        assert len(list(reader.frames())) == 24 == report.num_frames
    film = sha256_of(out)
    resume_film(run, pipeline=pipeline)
    assert sha256_of(out) == film


@pytest.mark.parametrize("index", [1, 3])
def test_windows_that_share_all_are_made_again_in_one_that_is_moved(
    pipeline: LatentVideoPipeline, tmp_path: Path, index: int
) -> None:
    """Of 8 frames 4 are shared, so nothing of a window in the middle is its own."""
    out, run = tmp_path / "film.mp4", tmp_path / "film.run"
    generate_film(pipeline, "clouds", out, num_frames=24, rule={"kind": "context", "overlap": 4}, **STEPS)
    segments, latents = hashes(run, "windows/*.mp4"), LatentFile(run / f"windows/{index:06d}.safetensors").read()
    reroll_window(run, index, pipeline=pipeline)
    again = hashes(run, "windows/*.mp4")
    assert [name for name in segments if segments[name] != again[name]] == [f"{index:06d}.mp4"]
    new = LatentFile(run / f"windows/{index:06d}.safetensors").read()
    assert not torch.isclose(new, latents).flatten(2).all(2).any()
    with open_video(out) as reader:
        assert len(list(reader.frames())) == 24


@pytest.mark.parametrize(
    ("places", "left"),
    [
        ([0, 1, 6, 7], lambda k: 0),
        ([0, 1], lambda k: off_by(k) - off_by(1)),
        ([6, 7], lambda k: off_by(k) - off_by(6)),
        ([0, 6, 7], lambda k: off_by(k) - off_by(6) * k / 6),  # frame 0, alone, is shown and cannot tell
    ],
)
def test_what_a_window_gets_wrong_does_not_show_at_its_ends(places: list[int], left: Callable[[int], float]) -> None:
    """What is left of it is what could not be known: how it changes where only one end is given."""
    truth = torch.arange(8.0).view(1, 1, -1, 1, 1).expand(1, 2, 8, 2, 3)
    wrong = off_by(torch.arange(8.0)).view(1, 1, -1, 1, 1)

    def off(x: Tensor, level: Level) -> Tensor:
        shown = (level.per_frame(1, 8).sigma[0] == 0).view(1, 1, -1, 1, 1)
        return torch.where(shown, x, truth + wrong)

    schedule = NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    shape, levels, rng = LatentShape(1, 2, 8, 2, 3), schedule.levels(4), Rng((5,))
    rule, prior = ContextRule(overlap=2), PRIORS.get("iid")()
    sampling = Sampling(4, None, 0.0, SOLVERS.get("euler")(), rule, rng, shape)
    setting = Setting(off, prior, schedule, levels, rng, shape, torch.device("cpu"))
    made = sample_between(setting, sampling, Window(1, 0, 8, 2, 8), truth[:, :, places], places)
    assert torch.equal(made[:, :, places], truth[:, :, places])
    for k in {*range(8)} - {*places}:
        torch.testing.assert_close(made[:, :, k], truth[:, :, k] + left(k), atol=1e-4, rtol=0)


def test_each_time_another_one(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    run = tmp_path / "film.run"
    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=20, **STEPS)
    seen = {sha256_of(tmp_path / "film.mp4")}
    for _ in range(2):
        reroll_window(run, 1, pipeline=pipeline)
        seen.add(sha256_of(tmp_path / "film.mp4"))
    assert len(seen) == 3
    with pytest.raises(UsageError, match="0 to 2"):
        reroll_window(run, 3, pipeline=pipeline)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_a_window_is_made_again(model: Path, tmp_path: Path) -> None:
    """Each child is killed seven operations later than the one before; no window is lost or torn."""
    pipeline = LatentVideoPipeline.from_pretrained(model)
    for name in ("whole", "film"):
        generate_film(pipeline, "clouds", tmp_path / f"{name}.mp4", num_frames=14, **STEPS)
    reroll_window(tmp_path / "whole.run", 1, prompt="sea at night", pipeline=pipeline)
    run = subprocess.run(
        [sys.executable, "-m", "tests.film.killer", str(model), str(tmp_path / "film.mp4"), "0", "reroll"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 5
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    for pattern in ("windows/*.mp4", "windows/*.safetensors", "carry/*", "preview/*", "preview.m3u8", "drift.json"):
        assert hashes(tmp_path / "film.run", pattern) == hashes(tmp_path / "whole.run", pattern)
    (film, whole) = (RunFolder.open(tmp_path / f"{name}.run").record for name in ("film", "whole"))
    assert film.rerolls == whole.rerolls
    assert not [p for p in tmp_path.rglob("*") if (p.name.startswith(".") and p.name != ".lock") or p.name == "next"]
