"""The writer: what comes back is what went in, and a failed film leaves nothing behind."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.core.errors import UsageError
from latentvid.video.reader import open_video
from latentvid.video.sound import Sound
from latentvid.video.writer import VideoWriter
from tests.video.clips import number_of, numbered, patches, read, write
from tests.video.test_remux import sound


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (36, 17), (2, 2), (1, 1)])
def test_size_count_and_rate_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    meta = open_video(write(tmp_path / "clip.mp4", patches(7, *size), Fraction(24000, 1001))).meta
    assert (meta.height, meta.width, meta.num_frames, meta.fps) == (*size, 7, Fraction(24000, 1001))
    assert meta.duration_s == pytest.approx(7 * 1001 / 24000)
    assert meta.pix_fmt == ("yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p")


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "h264-lossless"), ("a.mkv", "h264-lossless"), ("a.mkv", "ffv1")])
def test_lossless_is_lossless(tmp_path: Path, name: str, codec: str) -> None:
    video = torch.randint(0, 256, (5, 3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(write(tmp_path / name, video, codec=codec)), video)


def test_float_and_bytes_are_the_same_video(tmp_path: Path) -> None:
    video = numbered(4)
    a = write(tmp_path / "a.mp4", video)
    b = write(tmp_path / "b.mp4", video.float() / 127.5 - 1)
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.gif", "a.png"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, name: str) -> None:
    video = numbered(1 if name.endswith("png") else 20)
    (tmp_path / "b").mkdir()
    first = write(tmp_path / name, video).read_bytes()
    # Bytes once depended on what lay in memory before, so something else is decoded and freed in between.
    read(write(tmp_path / "other.mp4", patches(10, 480, 640, seed=1)))
    assert first == write(tmp_path / "b" / name, video).read_bytes()


def test_frames_may_come_in_any_portions(tmp_path: Path) -> None:
    video = numbered(20)
    with VideoWriter(tmp_path / "b.mp4", fps=25, width=96, height=64) as writer:
        for part in video.split([1, 7, 12]):
            writer.write(part)
    assert write(tmp_path / "a.mp4", video).read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_caller_may_reuse_its_tensor(tmp_path: Path) -> None:
    video = numbered(6)
    with VideoWriter(tmp_path / "b.mp4", fps=25, width=96, height=64) as writer:
        buffer = torch.empty_like(video[:1])
        for frame in video:
            buffer[0] = frame
            writer.write(buffer)
            buffer.zero_()
    assert [number_of(frame) for frame in read(tmp_path / "b.mp4")] == list(range(6))


def test_gif_and_stills(tmp_path: Path) -> None:
    video = patches(3, 32, 48)
    reader = open_video(write(tmp_path / "a.gif", video, 10))
    assert torch.equal(torch.stack([f.pixels for f in reader.frames()]), video)
    assert [f.time_s for f in reader.frames()] == [0, Fraction(1, 10), Fraction(2, 10)]
    with Image.open(write(tmp_path / "a.png", video[:1])) as image:
        assert image.size == (48, 32)
    assert torch.equal(read(tmp_path / "a.png"), video[:1])
    with pytest.raises(UsageError, match="holds one picture"):
        write(tmp_path / "b.png", video)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.png"]


def test_variable_rate_needs_increasing_times(tmp_path: Path) -> None:
    def attempt(times: list[float], **options: object) -> None:
        with VideoWriter(tmp_path / "a.mp4", fps=25, width=96, height=64, **options) as writer:  # type: ignore[arg-type]
            writer.write(numbered(2), times)

    with pytest.raises(ValueError, match="must increase"):
        attempt([0.5, 0.5], is_variable_rate=True)
    with pytest.raises(ValueError, match="must not be negative"):
        attempt([-0.5, 0.5], is_variable_rate=True)
    with pytest.raises(ValueError, match="is_variable_rate"):
        attempt([0.0, 0.5])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_film_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    def attempt(path: Path) -> None:
        with VideoWriter(path, fps=25, width=96, height=64, overwrite=True) as writer:
            writer.write(numbered(30))
            raise error

    old = write(tmp_path / "old.mp4", numbered(3)).read_bytes()
    for name in ("old.mp4", "new.mp4"):
        with pytest.raises(error):
            attempt(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == old
    assert not [t for t in threading.enumerate() if t.name == "video-writer"]


def test_existing_files_are_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", numbered(1))
    with pytest.raises(UsageError, match="exists"):
        VideoWriter(path, fps=25, width=96, height=64)


def test_an_empty_film_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames"), VideoWriter(tmp_path / "a.mp4", fps=25, width=96, height=64):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("a.xyz", {}, "cannot write files called .xyz"),
        ("a.mp4", {"codec": "ffv1"}, "does not go into .mp4"),
        ("a.mp4", {"codec": "h265"}, "did you mean 'h264'"),
        ("a.mp4", {"fps": 0}, "frames per second"),
        ("a.mp4", {"width": 20000}, "20000x64"),
        ("a.mp4", {"width": 97, "pix_fmt": "yuv420p"}, "odd sizes"),
    ],
)
def test_bad_requests(tmp_path: Path, name: str, options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        VideoWriter(tmp_path / name, **({"fps": 25, "width": 96, "height": 64} | options)).__enter__()
    assert not list(tmp_path.iterdir())


def test_wrong_shapes_and_numbers(tmp_path: Path) -> None:
    for video in (torch.zeros(1, 3, 64, 95), torch.zeros(3, 64, 96), torch.full((1, 3, 64, 96), float("nan"))):
        with pytest.raises(ValueError), VideoWriter(tmp_path / "a.mp4", fps=25, width=96, height=64) as writer:  # noqa: PT011
            writer.write(video)
    assert not list(tmp_path.iterdir())


_FULL_DISK = """
import sys, resource, torch
from latentvid.core.errors import ResourceError
from latentvid.video.writer import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with VideoWriter(sys.argv[1], fps=25, width=320, height=240) as writer:
        for _ in range(20):
            writer.write(torch.randint(0, 255, (1, 3, 240, 320), dtype=torch.uint8))
except ResourceError as error:
    print(error, file=sys.stdout)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file size limits")
def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "film.mp4")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "the disk is full" in result.stdout
    assert not list(tmp_path.iterdir())


def test_queue_is_bounded(tmp_path: Path) -> None:
    """A producer that is faster than the encoder waits for it."""
    with VideoWriter(tmp_path / "a.mp4", fps=25, width=96, height=64) as writer:
        for _ in range(10):
            writer.write(numbered(10))
            assert writer._queue.qsize() <= 8
    assert open_video(tmp_path / "a.mp4").meta.num_frames == 100


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize("ratio", [Fraction(16, 11), Fraction(3, 4)])
def test_the_shape_of_pixels_comes_back(tmp_path: Path, name: str, ratio: Fraction) -> None:
    meta = open_video(write(tmp_path / name, numbered(3), sample_aspect_ratio=ratio)).meta
    assert (meta.sample_aspect_ratio, meta.width, meta.height) == (ratio, 96, 64)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_is_copied_and_the_pictures_are_as_without(tmp_path: Path, name: str) -> None:
    source = sound(tmp_path / "sound.m4a", 3)
    video = numbered(50)
    write(tmp_path / name, video, sound=Sound(source, Fraction(0), Fraction(2)))
    write(tmp_path / f"silent_{name}", video)
    assert torch.equal(read(tmp_path / name), read(tmp_path / f"silent_{name}"))
    times = [[f.time_s for f in open_video(tmp_path / n).frames()] for n in (name, f"silent_{name}")]
    assert times[0] == times[1]
    assert audio_packets(tmp_path / name) == audio_packets(source)[: len(audio_packets(tmp_path / name))]
    with av.open(str(tmp_path / name)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert heard == pytest.approx(2, abs=0.05)


def test_sound_that_does_not_fit_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    source = tmp_path / "sound.wav"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("adpcm_ms", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, stream.codec_context.frame_size or 1024), np.int16), "s16", "mono"
        )
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    writer = VideoWriter(tmp_path / "a.mp4", fps=25, width=8, height=8, sound=Sound(source, Fraction(0), Fraction(2)))
    with pytest.raises(UsageError, match="its sound does not go"):
        writer.__enter__()
    with pytest.raises(UsageError, match="hold no sound"):
        VideoWriter(tmp_path / "a.gif", fps=25, width=8, height=8, sound=Sound(source, Fraction(0), Fraction(2)))
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def audio_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]
