"""Joining segments: every packet kept, every frame bit for bit, every time exact."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentvid.core.errors import InputError, UsageError
from latentvid.video.reader import open_video
from latentvid.video.remux import concat_segments
from tests.video.clips import numbered, read, write

# One frame alone has no reordering, so its decode times differ from those of its neighbours.
_LENGTHS = [16, 1, 2, 23, 5]


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("segments")
    parts = numbered(sum(_LENGTHS)).split(_LENGTHS)
    return [write(folder / f"{i}.mp4", part, Fraction(30000, 1001)) for i, part in enumerate(parts)]


def sound(path: Path, seconds: float) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        wave = (np.sin(np.arange(int(48000 * seconds)) / 20) * 0.3).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_joined_frames_are_those_of_the_segments(segments: list[Path], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"film{suffix}"
    concat_segments(segments, out)
    assert torch.equal(read(out), torch.cat([read(part) for part in segments]))
    meta = open_video(out).meta
    assert meta.num_frames == sum(_LENGTHS)
    assert not meta.is_variable_rate
    if suffix != ".mkv":  # Matroska counts milliseconds
        times = [frame.time_s for frame in open_video(out).frames()]
        assert times == [Fraction(1001 * n, 30000) for n in range(sum(_LENGTHS))]


def test_packets_are_copied(segments: list[Path], tmp_path: Path) -> None:
    concat_segments(segments, tmp_path / "film.mp4")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(video=0) if p.size]

    assert packets(tmp_path / "film.mp4") == [p for part in segments for p in packets(part)]
    with av.open(str(tmp_path / "film.mp4")) as container:
        dts = [p.dts for p in container.demux(video=0) if p.size]
    assert all(a < b for a, b in pairwise(dts))


def test_equal_segments_give_equal_bytes(segments: list[Path], tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        concat_segments(segments, tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_sound_is_copied_to_the_end_of_the_film(segments: list[Path], tmp_path: Path) -> None:
    source = sound(tmp_path / "sound.m4a", 10)
    concat_segments(segments, tmp_path / "film.mp4", audio_from=source)
    with av.open(str(tmp_path / "film.mp4")) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert heard == pytest.approx(sum(_LENGTHS) * 1001 / 30000, abs=0.05)
    assert open_video(tmp_path / "film.mp4").meta.has_audio
    assert torch.equal(read(tmp_path / "film.mp4"), torch.cat([read(part) for part in segments]))


def test_a_source_without_sound_adds_none(segments: list[Path], tmp_path: Path) -> None:
    concat_segments(segments, tmp_path / "film.mp4", audio_from=segments[0])
    assert not open_video(tmp_path / "film.mp4").meta.has_audio


def test_unlike_segments_are_refused(segments: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other.mp4", numbered(3, 64, 112), Fraction(30000, 1001))
    with pytest.raises(InputError, match="size differs"):
        concat_segments([segments[0], other], tmp_path / "film.mp4")
    other = write(tmp_path / "clock.mp4", numbered(3), 25)
    with pytest.raises(InputError, match="differs"):
        concat_segments([segments[0], other], tmp_path / "film.mp4")
    with pytest.raises(UsageError, match="no segments"):
        concat_segments([], tmp_path / "film.mp4")
    with pytest.raises(InputError, match="no such file"):
        concat_segments([tmp_path / "missing.mp4"], tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()
