"""The clock of a clip: typical rates, and times that containers break, join, leave out or make up."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet

from latentvid.core.errors import InputError, UsageError
from latentvid.video.clock import Stamp, filled, timeline
from latentvid.video.rate import checked_rate, is_variable, parse_rate, typical_rate
from latentvid.video.reader import open_video
from tests.video.clips import number_of, numbered

GOP, LENGTH, FPS = 12, 36, 12
MS = Fraction(1, 1000)
Change = Callable[[int, Packet], Any]


def encode(path: Path, codec: str = "libx264", frames: range = range(LENGTH), **options: str) -> Path:
    """Write numbered frames at 12 per second, a key frame every 12, with B-frames where the codec has them."""
    usual = {"libx264": {"bf": "3", "b_strategy": "0", "crf": "12", "x264-params": "scenecut=0:open-gop=0"}}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=Fraction(FPS), options={**usual.get(codec, {}), **options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = GOP
        if codec == "libx264":
            stream.codec_context.max_b_frames = 3
        for picture in numbered(LENGTH)[frames.start : frames.stop]:
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return path


def copy(source: Path, target: Path, change: Change = lambda k, packet: None, **options: str) -> Path:
    """Copy packets; `change` may alter packet number k, and leaves it out by returning False."""
    with av.open(str(source)) as inside, av.open(str(target), "w", container_options=options) as outside:
        stream = inside.streams.video[0]
        twin = outside.add_stream_from_template(stream)
        for k, packet in enumerate(inside.demux(stream)):
            if packet.size and change(k, packet) is not False:
                packet.stream = twin
                outside.mux_one(packet)
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("times") / "clip.mp4")


def shown_when_decoded(k: int, packet: Packet) -> None:
    packet.pts = packet.dts = round(Fraction(k, FPS) / packet.time_base)


def without(num: int) -> Change:
    return lambda k, packet: k >= num


def later(seconds: float) -> Change:
    def change(k: int, packet: Packet) -> None:
        ticks = round(seconds / packet.time_base)
        packet.pts += ticks
        packet.dts += ticks

    return change


def check(path: Path, numbers: list[int], *, fps: Fraction | int = FPS, says: str = "") -> None:
    """Check what is said before reading, then frames and times: even steps but for the rounding to ticks."""
    reader = open_video(path)
    meta = reader.meta
    assert (meta.fps, meta.num_frames, meta.is_variable_rate) == (fps, len(numbers), False)
    assert meta.duration_s == pytest.approx(len(numbers) / fps, abs=0.002)
    assert says in " ".join(meta.notes)
    frames = list(reader.frames())
    assert [number_of(frame.pixels) for frame in frames] == numbers
    assert frames[0].time_s == meta.start_s
    for k, frame in enumerate(frames):
        assert abs(frame.time_s - meta.start_s - Fraction(k) / fps) <= 2 * meta.time_base
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))
    part = list(reader.frames(3, 6))
    assert [(f.index, f.time_s) for f in part] == [(f.index, f.time_s) for f in frames[3:6]]
    assert (reader.counted().num_frames, reader.counted().num_frames_source) == (len(numbers), "counted")


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv", "a.ts"])
def test_times_of_decoding_are_laid_out_in_the_order_of_showing(clip: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    made = encode(path) if name == "a.avi" else copy(clip, path, shown_when_decoded)
    check(made, list(range(LENGTH)), says="when frames are decoded")


def test_mpeg4_with_b_frames_in_avi(tmp_path: Path) -> None:
    check(encode(tmp_path / "asp.avi", "mpeg4", bf="2", qscale="2"), list(range(LENGTH)))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", ""), ("a.mkv", ""), ("a.mp4", ""), ("a.ts", "mpeg4"), ("a.webm", "libvpx")]
)
def test_captures_that_begin_inside_a_gop(clip: Path, tmp_path: Path, name: str, codec: str) -> None:
    source = encode(tmp_path / f"whole{Path(name).suffix}", codec, bf="0") if codec else clip
    cut = copy(source, tmp_path / name, without(4))
    check(cut, list(range(GOP, LENGTH)), says="" if codec else "give no frame")


def test_captures_cut_inside_a_packet(clip: Path, tmp_path: Path) -> None:
    stream = copy(clip, tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(stream[188 * 40 + 77 :])
    numbers = [number_of(frame.pixels) for frame in open_video(tmp_path / "cut.ts").frames()]
    assert numbers[0] % GOP == 0 < numbers[0]
    check(tmp_path / "cut.ts", list(range(numbers[0], LENGTH)))


def test_a_clock_that_starts_anew_is_joined_on(clip: Path, tmp_path: Path) -> None:
    part = encode(tmp_path / "part.mp4", frames=range(GOP))
    pieces = {
        name: copy(part, tmp_path / name, change).read_bytes()
        for name, change in {
            "at_0.ts": later(0), "at_0.6.ts": later(0.6), "at_3600.ts": later(3600), "at_0.mkv": later(0),
            "inside.ts": without(0),
        }.items()
    }  # fmt: skip
    inside = copy(clip, tmp_path / "inside.ts", without(4)).read_bytes()
    once, late = list(range(GOP)), list(range(GOP, LENGTH))
    for name, content, numbers in (
        ("restart.ts", pieces["at_0.ts"] * 3, once * 3),
        ("little.ts", pieces["at_0.ts"] + pieces["at_0.6.ts"], once * 2),
        ("jumps.ts", pieces["at_0.ts"] + pieces["at_3600.ts"] + pieces["at_0.ts"], once * 3),
        ("restart.mkv", pieces["at_0.mkv"] * 2, once * 2),
        ("inside_twice.ts", inside * 2, late * 2),
    ):
        (tmp_path / name).write_bytes(content)
        check(tmp_path / name, numbers, says="clock starts anew")


def test_clocks_that_wrap(clip: Path, tmp_path: Path) -> None:
    check(copy(clip, tmp_path / "wrap.ts", later(2**33 / 90_000 - 1.5)), list(range(LENGTH)))


def test_packets_without_a_time_take_none_from_the_others(clip: Path, tmp_path: Path) -> None:
    early = copy(clip, tmp_path / "early.mkv", later(-0.5), avoid_negative_ts="disabled")
    with av.open(str(early)) as container:
        assert any(packet.pts is None for packet in container.demux(video=0) if packet.size)
    check(early, list(range(LENGTH)))


def test_one_time_for_two_frames_is_spread(tmp_path: Path) -> None:
    source = encode(tmp_path / "source.mp4", bf="0", **{"x264-params": "bframes=0:scenecut=0"})

    def in_pairs(k: int, packet: Packet) -> None:
        packet.pts = packet.dts = round(Fraction(k - k % 2, FPS) / packet.time_base)

    check(copy(source, tmp_path / "pairs.mkv", in_pairs), list(range(LENGTH)), says="laid out evenly")


@pytest.mark.parametrize(("suffix", "codec"), [(".h264", ""), (".m2v", "mpeg2video"), (".m4v", "mpeg4")])
def test_bare_streams_have_the_rate_of_their_headers(clip: Path, tmp_path: Path, suffix: str, codec: str) -> None:
    source = encode(tmp_path / "source.avi", codec, bf="2", strict="-1", qscale="2") if codec else clip
    bare = tmp_path / f"bare{suffix}"
    with av.open(str(source)) as inside, av.open(str(bare), "w", format=suffix[1:].replace("m2v", "mpeg2video")) as out:
        twin = out.add_stream_from_template(inside.streams.video[0])
        for packet in inside.demux(video=0):
            if packet.size:
                packet.stream = twin
                out.mux_one(packet)
    check(bare, list(range(LENGTH)), fps=open_video(bare).meta.fps)
    meta = open_video(bare, fps=50).meta
    assert meta.fps == (Fraction(FPS) if codec != "mpeg2video" else meta.fps)
    assert "fps" not in meta.assumed
    assert meta.start_s == 0


def test_a_rate_that_nothing_states_is_assumed_or_given(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mjpeg"), "w", format="mjpeg") as out:
        stream: Any = out.add_stream("mjpeg", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for picture in numbered(6):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuvj420p")))
        out.mux(stream.encode(None))
    assert "fps" in open_video(tmp_path / "a.mjpeg").meta.assumed
    reader = open_video(tmp_path / "a.mjpeg", fps=12)
    assert (reader.meta.fps, reader.meta.assumed.count("fps")) == (12, 0)
    assert [frame.time_s * 12 for frame in reader.frames()] == list(range(6))
    assert all((frame.time_s / reader.meta.time_base).denominator == 1 for frame in reader.frames())


def rounded(fps: Fraction | int, count: int, tick: Fraction, how: Callable[[Fraction], int] = round) -> list[int]:
    return [how(k / Fraction(fps) / tick) for k in range(count)]


@pytest.mark.parametrize("how", [round, int])
@pytest.mark.parametrize(
    "fps", ["24000/1001", "30000/1001", "60000/1001", "24", "25", "30", "12", "15/2", "179/6", "50"]
)
def test_rates_come_back_from_rounded_times(fps: str, how: Callable[[Fraction], int]) -> None:
    rate = Fraction(fps)
    assert typical_rate(rounded(rate, 120, MS, how), MS, []) == rate
    # What is said beside the times is not always what they say, and decoded files have finer clocks.
    assert typical_rate(rounded(rate, 120, MS, how), MS, [rate * Fraction(9998, 10000)]) == rate
    finer = [16 * time for time in rounded(rate, 120, MS, how)]
    assert typical_rate(finer, MS / 16, []) == rate
    assert not is_variable(finer)
    assert typical_rate(rounded(rate, 120, Fraction(1, 90_000)), Fraction(1, 90_000), []) == rate


@pytest.mark.parametrize("tick", [MS, Fraction(1, 15360)])
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(30), Fraction(12)])
def test_the_typical_step_is_the_rate_whatever_gaps_there_are(tick: Fraction, fps: Fraction) -> None:
    times = rounded(fps, 80, tick)
    gap = [time + (round(7 / tick) if k >= 50 else 0) for k, time in enumerate(times)]
    dropped = [time for k, time in enumerate(times) if k % 9]
    held = [*times[:-1], times[-1] + round(2 / tick)]
    mean = [len(times) / (gap[-1] * tick)]
    for clip in (gap, dropped, held):
        assert typical_rate(clip, tick, mean) == fps
        assert is_variable(clip)
    jitter = np.random.default_rng(0).integers(-20, 20, 80).tolist()
    fine = [90 * time + wave for time, wave in zip(rounded(fps, 80, MS), jitter, strict=True)]
    assert typical_rate(fine, Fraction(1, 90_000), [fps]) == fps


def test_irregular_times_have_the_mean_rate() -> None:
    times = np.cumsum(np.random.default_rng(1).integers(10, 400, 50)).tolist()
    mean = 50 / ((times[-1] - times[0] + 100) * MS)
    assert typical_rate(times, MS, [], 100) == mean
    assert typical_rate(times, MS, [mean * Fraction(1001, 1000)], 100) == mean * Fraction(1001, 1000)
    assert typical_rate([5], MS, [Fraction(25)]) is None


def test_pieces_and_gaps_of_stamps() -> None:
    def stamps(times: list[int], keys: set[int]) -> list[Stamp]:
        return [Stamp(time, time, k in keys, k) for k, time in enumerate(times)]

    whole = timeline(stamps([0, 3, 1, 2, 6, 4, 5], {0}), MS, has_own_order=False, may_jump=False)
    assert (whole.ticks, whole.stated, whole.num_restarts) == ([0, 1, 2, 3, 4, 5, 6], None, 0)
    twice = timeline(stamps([0, 1, 2, 1, 2, 3], {0, 3}), MS, has_own_order=True, may_jump=False)
    assert (twice.ticks, twice.breaks) == ([0, 1, 2, 3, 4, 5], (3,))
    far = stamps([0, 40, 80, 120, 60_000, 60_040], {0})
    assert timeline(far, MS, has_own_order=True, may_jump=True).ticks == [0, 40, 80, 120, 160, 200]
    assert timeline(far, MS, has_own_order=True, may_jump=False).stated is None
    jitter = stamps([0, 33, 66, 65, 130, 163], {0, 1, 2, 3, 4, 5})  # a camera's, every frame a key frame
    assert timeline(jitter, MS, has_own_order=False, may_jump=False).num_restarts == 0
    assert filled([None, None, 20, None, 40, None]) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1/0", "nan", "inf", "1e9", "1e999999999", "2000", "25fps"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="frame rate"):
        parse_rate(text)


def test_rates_of_users() -> None:
    assert [parse_rate(text) for text in ("12", "29.97", "30000/1001", "12.5")] == [
        12, Fraction(30000, 1001), Fraction(30000, 1001), Fraction(25, 2)
    ]  # fmt: skip
    with pytest.raises(UsageError, match="frame rate"):
        checked_rate(float("nan"))


def test_a_capture_without_any_key_frame_is_refused(clip: Path, tmp_path: Path) -> None:
    cut = copy(clip, tmp_path / "no_key.ts", lambda k, packet: 1 <= k < GOP - 1)
    with pytest.raises(InputError, match="not even the first frame|holds no frames"):
        open_video(cut)
