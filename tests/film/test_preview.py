"""The preview: a playlist that shows every finished window, while the film is made and after."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import pytest

from latentvid.film.generate import generate_film
from latentvid.film.make import Progress
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from tests.film.test_generate import Stop, frames_of
from tests.film.tiny import STEPS, hashes


def played(playlist: Path) -> list[bytes]:
    """Return the pictures that a player decodes who stops where the playlist ends now."""
    text = playlist.read_text()
    now = playlist.with_name("now.m3u8")
    now.write_text(text if "ENDLIST" in text else f"{text}#EXT-X-ENDLIST\n")
    with av.open(str(now), options={"allowed_extensions": "ALL"}) as container:
        frames = list(container.decode(video=0))
    times = [frame.time for frame in frames]
    assert all(0.07 < later - earlier < 0.1 for earlier, later in pairwise(times)), times
    return [frame.to_ndarray().tobytes() for frame in frames]


def test_windows_are_watched_while_later_ones_are_made(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    seen: dict[int, int] = {}

    def watch(at: Progress) -> None:
        if at.call == 1 and at.window:
            seen[at.window] = len(played(tmp_path / "film.run" / "preview.m3u8"))
        if at.window == 2 and at.call == 2:
            raise Stop

    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=20, on_progress=watch, **STEPS)
    assert seen == {1: 8, 2: 14}
    playlist = tmp_path / "film.run" / "preview.m3u8"
    assert "ENDLIST" not in playlist.read_text()
    (tmp_path / "film.run" / "preview" / "000001.ts").unlink()  # killed before it was written
    playlist.write_text(playlist.read_text()[:-5])
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert playlist.read_text().endswith("#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert played(playlist) == [frame.to_ndarray().tobytes() for frame in film.decode(video=0)]
    before = hashes(tmp_path / "film.run", "preview/*.ts")
    reroll_window(tmp_path / "film.run", 1, pipeline=pipeline)
    after = hashes(tmp_path / "film.run", "preview/*.ts")
    assert [name for name in before if before[name] != after[name]] == ["000001.ts"]


def test_other_codecs_have_none(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    generate_film(pipeline, "clouds", tmp_path / "film.gif", num_frames=3, **STEPS)
    assert len(frames_of(tmp_path / "film.gif")) == 3
    assert not (tmp_path / "film.run" / "preview.m3u8").exists()
