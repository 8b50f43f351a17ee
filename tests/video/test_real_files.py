"""Every real clip and every awkward file, against a table made by hand from two other decoders."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentvid.core.errors import InputError
from latentvid.video.reader import open_video

# name: (frames, width, height, fps, rotation)
CLIPS = {
    "01_dog.mp4": (289, 1280, 720, Fraction(30000, 1001), 0),
    "bedroom.mp4": (200, 960, 540, Fraction(30), 0),
    "bikes.mp4": (250, 640, 272, Fraction(25), 0),
    "bottle-detection.mp4": (1189, 640, 360, Fraction(179, 6), 0),
    "carphone_pristine.mp4": (120, 176, 144, Fraction(30000, 1001), 0),
    "chaplin.mp4": (241, 640, 360, Fraction(25), 0),
    "cockatoo.mp4": (280, 1280, 720, Fraction(20), 0),
    "flipping_a_pancake.mkv": (310, 426, 240, Fraction(30), 0),
    "nasa_13013.mp4": (390, 480, 270, Fraction(30000, 1001), 0),  # the larger of its two video streams
}
READABLE = {
    "alpha_ffv1.mkv": (16, 128, 96, Fraction(25), 0),
    "av1_video.mkv": (125, 640, 360, Fraction(25), 0),
    "bt709_full_range.mp4": (30, 1280, 720, Fraction(30), 0),
    "fps_half.mp4": (6, 96, 64, Fraction(1, 2), 0),  # a frame every 2 s; the container's average says 6/11
    "gray_ffv1.mkv": (24, 160, 96, Fraction(25), 0),
    "h265_10bits.mp4": (30, 200, 200, Fraction(30), 0),
    "hdr_hlg_10bit_hevc.mp4": (16, 128, 96, Fraction(25), 0),
    "mp4_sample_fragmented.mp4": (30, 1080, 720, Fraction(30000, 1001), 0),
    "odd_35x37_yuv444.mp4": (16, 35, 37, Fraction(25), 0),
    "one_frame.mp4": (1, 320, 136, Fraction(25), 0),
    "sar_16_11.mp4": (24, 176, 144, Fraction(25), 0),
    "unordered.mov": (4, 50, 50, Fraction(32), 0),
    "vfr_irregular.mp4": (40, 160, 96, Fraction(5000, 573), 0),  # 40 frames in 4.584 s
    "video_0.mov": (3, 568, 320, Fraction(30), 0),
    "video_90.mov": (3, 320, 568, Fraction(30), 90),
    "video_180.mov": (3, 568, 320, Fraction(30), 180),
    "video_270.mov": (3, 320, 568, Fraction(30), 270),
    "vp9_bear-vp9-odd-dimensions.webm": (30, 161, 121, Fraction(30000, 1001), 0),  # rounded to milliseconds
}
REFUSED = {
    "WindowsMediaVideo.wmv": "holds no frames",  # a header without packets
    "audio_only.mp3": "only sound",
    "garbage_random_bytes.mp4": "not a video|no known video format",
    "gif.gif": "holds no frames",  # 14 bytes
    "png-truncated.png": "cannot be decoded",
    "trunc_moov_missing.mp4": "not a video",
    "vp9_invalid-bitstream.webm": "cannot be decoded",
    "zero_bytes.mp4": "is empty",
}
# Files whose containers say too little or something else; name: (frames, fps, seconds to the end of the last frame).
FAULTS = {
    "bf.avi": (48, Fraction(12), 4.0),
    "bf.h264": (48, Fraction(12), 4.0),
    "og_cut.mkv": (36, Fraction(12), 3.0),
    "midgop.ts": (24, Fraction(12), 2.0),
    "concat_restart.ts": (96, Fraction(12), 8.0),
    "hevc_cut.mkv": (105, Fraction(25), 4.24),
    "longgap.mp4": (30, Fraction(30), 7.667),
    "inter.mp4": (24, Fraction(12), 2.0),
}
# Damaged part way: frames before the first that is broken.
PREFIX = {"bitflips_faststart.mp4": 12, "corrupted.mp4": 28}


def test_the_table_is_complete(assets: Path) -> None:
    awkward = {path.name for path in (assets / "data" / "awkward").iterdir()}
    assert awkward == set(READABLE) | set(REFUSED) | set(PREFIX)
    assert {path.name for path in (assets / "data" / "clips").iterdir()} == set(CLIPS)


def check(path: Path, expected: tuple[int, int, int, Fraction, int]) -> None:
    num_frames, width, height, fps, _ = expected
    reader = open_video(path)
    meta = reader.meta
    found = (meta.num_frames, meta.width, meta.height, meta.fps, meta.rotation)
    assert found == expected
    count = 0
    last = None
    for frame in reader.frames():
        assert tuple(frame.pixels.shape) == (3, height, width)
        assert last is None or frame.time_s > last
        if not meta.is_variable_rate:
            ideal = meta.start_s + count / fps
            assert abs(frame.time_s - ideal) <= meta.time_base
        last = frame.time_s
        count += 1
    assert count == num_frames
    assert reader.meta.num_frames_source == "counted"


@pytest.mark.parametrize("name", sorted(CLIPS))
def test_clips(assets: Path, name: str) -> None:
    check(assets / "data" / "clips" / name, CLIPS[name])


@pytest.mark.parametrize("name", sorted(READABLE))
def test_awkward_but_readable(assets: Path, name: str) -> None:
    check(assets / "data" / "awkward" / name, READABLE[name])


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_containers_say_wrongly(assets: Path, name: str) -> None:
    path = assets / "faults" / name
    if not path.is_file():
        pytest.skip("no faulty files among the test assets")
    reader = open_video(path)
    assert (reader.meta.num_frames, reader.meta.fps) == FAULTS[name][:2]
    assert reader.meta.duration_s == pytest.approx(FAULTS[name][2], abs=0.001)
    assert "fps" not in reader.meta.assumed
    times = [frame.time_s for frame in reader.frames()]
    assert len(times) == FAULTS[name][0] == reader.counted().num_frames
    if name not in ("hevc_cut.mkv", "longgap.mp4"):  # these have gaps
        for k, time in enumerate(times):
            assert abs(time - times[0] - k / FAULTS[name][1]) <= reader.meta.time_base


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_unreadable(assets: Path, name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]) as caught:
        open_video(assets / "data" / "awkward" / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(PREFIX))
def test_damaged(assets: Path, name: str) -> None:
    path = assets / "data" / "awkward" / name
    with pytest.raises(InputError, match="damaged"):
        list(open_video(path).frames())
    reader = open_video(path, allow_truncated=True)
    assert len(list(reader.frames())) == PREFIX[name]
    assert reader.meta.is_truncated
    assert reader.meta.num_frames == PREFIX[name]


def test_turned_files_stand_as_another_decoder_turns_them(assets: Path) -> None:
    pytest.importorskip("decord")
    for name in ("video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov"):
        path = assets / "data" / "awkward" / name
        ours = next(open_video(path).frames()).pixels.float()
        theirs = next(open_video(path, backend="decord").frames()).pixels.float()
        assert (ours - theirs).abs().mean() < 3


@pytest.mark.parametrize("name", ["bikes.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv", "carphone_pristine.mp4"])
def test_another_decoder_sees_the_same_frames(assets: Path, name: str) -> None:
    pytest.importorskip("decord")
    path = assets / "data" / "clips" / name
    pairs = zip(open_video(path).frames(20, 60), open_video(path, backend="decord").frames(20, 60), strict=True)
    for ours, theirs in pairs:
        assert ours.time_s == theirs.time_s
        assert (ours.pixels.float() - theirs.pixels.float()).abs().mean() < 3


@pytest.mark.parametrize("name", ["01_dog.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4"])
def test_seeking_in_real_files(assets: Path, name: str) -> None:
    reader = open_video(assets / "data" / "clips" / name)
    wanted = sorted(np.random.default_rng(0).integers(1, reader.meta.num_frames, 5).tolist())
    through = {f.index: f for f in reader.frames(0, wanted[-1] + 1) if f.index in wanted}
    for index in wanted:
        frame = next(reader.frames(index))
        assert frame.index == index
        assert frame.time_s == through[index].time_s
        assert (frame.pixels == through[index].pixels).all()
