"""Pictures that a film begins or ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import UsageError
from latentvid.core.files import sha256_of
from latentvid.film.extend import extend_clip
from latentvid.film.generate import generate_film
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.pixels import to_float
from latentvid.video.reader import open_video
from tests.film.test_extend import write_clip
from tests.film.test_generate import Stop, stop_in
from tests.film.tiny import STEPS, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> LatentVideoPipeline:
    """One that was trained, or so it says, with a noise level per frame."""
    pipeline = tiny_pipeline()
    pipeline.register_to_config(overlap_rule={"kind": "context", "overlap": 2})
    return pipeline


def latents_of(pipeline: LatentVideoPipeline, path: Path) -> torch.Tensor:
    with open_video(path) as reader:
        frame = to_float(next(iter(reader.frames())).pixels[None])
    with torch.no_grad():
        return torch.cat(list(pipeline.autoencoder.encode([frame])), dim=1)[:, 0]


def test_a_film_begins_and_ends_with_pictures(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    start = write_clip(tmp_path / "start.png", num_frames=1, width=32)
    end = write_clip(tmp_path / "end.png", num_frames=1, width=32)
    wanted = {"num_frames": 17, "start_image": start, "end_image": end, **STEPS}
    generate_film(pipeline, "clouds", tmp_path / "whole.mp4", **wanted)  # type: ignore[arg-type]
    windows = tmp_path / "whole.run" / "windows"
    first, last = LatentFile(windows / "000000.safetensors").read(), LatentFile(windows / "000002.safetensors").read()
    assert torch.equal(first[:, 0], latents_of(pipeline, start))
    assert torch.equal(last[:, -1], latents_of(pipeline, end))
    assert last.shape[1] == 3
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", on_progress=stop_in(1), **wanted)  # type: ignore[arg-type]
    start.unlink()  # its latents are in the run
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    reroll_window(tmp_path / "film.run", 2, pipeline=pipeline)
    again = LatentFile(tmp_path / "film.run" / "windows" / "000002.safetensors").read()
    assert torch.equal(again[:, -1], last[:, -1])
    assert not torch.equal(again[:, 0], last[:, 0])


def test_a_continued_clip_ends_with_one(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    clip, end = write_clip(tmp_path / "clip.mp4", width=32), write_clip(tmp_path / "end.png", num_frames=1, width=32)
    extend_clip(pipeline, clip, tmp_path / "longer.mp4", num_frames=8, end_image=end, **STEPS)
    last = LatentFile(tmp_path / "longer.run" / "windows" / "000001.safetensors").read()
    assert torch.equal(last[:, -1], latents_of(pipeline, end))


def test_models_that_cannot_are_said_so(tmp_path: Path) -> None:
    start = write_clip(tmp_path / "start.png", num_frames=1)
    with pytest.raises(UsageError, match="cannot be given"):
        generate_film(tiny_pipeline(), "clouds", tmp_path / "film.mp4", start_image=start, **STEPS)
    assert not (tmp_path / "film.run").exists()
