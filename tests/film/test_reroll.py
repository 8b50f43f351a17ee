"""One window made again: the others keep every byte, the neighbours' frames stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import UsageError
from latentvid.core.files import sha256_of
from latentvid.film.generate import generate_film, resume_film
from latentvid.film.reroll import reroll_window
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.reader import open_video
from tests.film.tiny import STEPS, hashes


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
