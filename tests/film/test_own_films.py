"""Films of ours, continued: from their latents, again and again, and the clip at their front stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import InputError
from latentvid.core.files import sha256_of
from latentvid.film import extend as extending
from latentvid.film.extend import extend_clip
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.latents import FilmLatents
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.append import begins_with
from tests.film.test_extend import read, write_clip
from tests.film.test_generate import Stop, stop_in
from tests.film.tiny import STEPS


@pytest.mark.parametrize("rule", [{"kind": "reuse", "overlap": 2}, {"kind": "context", "overlap": 3}])
def test_a_film_goes_on_as_if_it_had_been_longer(
    pipeline: LatentVideoPipeline, tmp_path: Path, rule: dict[str, object]
) -> None:
    stride = 8 - int(rule["overlap"])  # type: ignore[call-overload]
    wanted = {"rule": rule, "seed": 3, "drift_limit": 0.02, **STEPS}  # the guard looks back at the same frames
    generate_film(pipeline, "clouds", tmp_path / "a.mp4", num_frames=8 + stride, **wanted)  # type: ignore[arg-type]
    more = 2 * stride
    report = extend_clip(pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4", num_frames=more, prompt="clouds", **wanted)  # type: ignore[arg-type]
    assert any("latents in" in note for note in report.notes)
    assert any("brought windows 0, 1 back" in note for note in report.notes)
    generate_film(pipeline, "clouds", tmp_path / "c.mp4", num_frames=8 + 3 * stride, **wanted)  # type: ignore[arg-type]
    for k in range(2):
        longer = LatentFile(tmp_path / f"c.run/windows/{k + 2:06d}.safetensors").read()
        assert torch.equal(LatentFile(tmp_path / f"b.run/windows/{k:06d}.safetensors").read(), longer)


def test_ten_times(pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = clip = write_clip(tmp_path / "0.mp4")
    encoded = []
    real = extending.encoded_end
    monkeypatch.setattr(extending, "encoded_end", lambda *given: encoded.append(given) or real(*given))
    for k in range(1, 11):
        out = tmp_path / f"{k}.mp4"
        # 3 frames are less than a window's 6, so tails come from the film's latents, across runs.
        report = extend_clip(pipeline, film, out, num_frames=3, prompt="clouds", **STEPS)
        film = out
    assert len(encoded) == 1
    assert begins_with(film, clip)
    assert begins_with(film, tmp_path / "9.mp4")
    assert {"join_step", "join_before", "join_after"} <= set(report.drift)
    assert any("the step at the join is" in note for note in report.notes)
    latents = FilmLatents(RunFolder.open(film))
    before = FilmLatents(RunFolder.open(tmp_path / "9.run"))
    assert latents.plan.given == before.stop
    assert torch.equal(latents.read(before.stop - 8, before.stop), before.tail(8))


def test_rates_and_hand_over_go_on_through_films_of_ours(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    """A film of 11 new frames that is continued by 14 shows what one of 25 does."""
    clip = write_clip(tmp_path / "clip.mkv", fps=25, codec="ffv1")
    given = {"rule": {"kind": "context", "overlap": 2}, "crf": 0, "source_frames": "lossless", **STEPS}
    # 11 frames at 25 a second take 6 of the model's, and a window has as many: the films' windows are the same. The
    # second film's first frame lies between the 5th and the 6th.
    extend_clip(pipeline, clip, tmp_path / "whole.mkv", num_frames=25, **given)  # type: ignore[arg-type]
    extend_clip(pipeline, clip, tmp_path / "a.mkv", num_frames=11, **given)  # type: ignore[arg-type]
    extend_clip(pipeline, tmp_path / "a.mkv", tmp_path / "b.mkv", num_frames=14, **given)  # type: ignore[arg-type]
    films = [RunFolder.open(tmp_path / f"{name}.run") for name in ("whole", "a", "b")]
    clips = [film.settings.clip for film in films]
    assert [c.hand_over_frames for c in clips if c] == [25, 25, 25]
    assert clips[2] is not None
    assert (clips[2].shown_before, clips[2].made_before) == (11, 6)
    whole, joined = read(tmp_path / "whole.mkv")[0], read(tmp_path / "b.mkv")[0]
    assert len(whole) == len(joined) == 14 + 25
    assert torch.equal(whole, joined)


def test_what_was_edited_is_encoded(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    film = tmp_path / "a.mp4"
    generate_film(pipeline, "clouds", film, num_frames=8, **STEPS)
    film.unlink()
    write_clip(film, width=32)
    report = extend_clip(pipeline, film, tmp_path / "b.mp4", num_frames=3, **STEPS)
    assert not any("latents in" in note for note in report.notes)


def test_latents_that_are_gone_are_missed(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    generate_film(pipeline, "clouds", tmp_path / "a.mp4", num_frames=14, **STEPS)
    with pytest.raises(Stop):
        extend_clip(pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4", num_frames=8, on_progress=stop_in(0), **STEPS)
    carry = tmp_path / "b.run" / "carry" / "000000.safetensors"
    before = sha256_of(carry)
    carry.unlink()  # killed before it was written
    (tmp_path / "a.run").rename(tmp_path / "elsewhere.run")
    with pytest.raises(InputError, match="gone or was changed"):
        resume_film(tmp_path / "b.run", pipeline=pipeline)
    (tmp_path / "elsewhere.run").rename(tmp_path / "a.run")
    with pytest.raises(Stop):
        resume_film(tmp_path / "b.run", pipeline=pipeline, on_progress=stop_in(0))
    assert sha256_of(carry) == before
    (tmp_path / "a.run").rename(tmp_path / "elsewhere.run")  # its latents are in the new run
    resume_film(tmp_path / "b.run", pipeline=pipeline)
    reroll_window(tmp_path / "b.run", 0, pipeline=pipeline)
    assert begins_with(tmp_path / "b.mp4", tmp_path / "a.mp4")
