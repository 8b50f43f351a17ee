"""The reader on clips whose every frame and time is known."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.core.errors import InputError, UsageError
from latentvid.video.orientation import Orientation, from_matrix
from latentvid.video.reader import open_video
from tests.video.clips import number_of, numbered, patches, read, write


def copy_packets(source: Path, target: Path, *, drop_ticks: int = 0, **options: str) -> Path:
    """Remux without re-encoding, moving all times `drop_ticks` back (which hides the frames before 0)."""
    with av.open(str(source)) as inside, av.open(str(target), "w", options=options) as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for packet in inside.demux(stream):
            if packet.dts is None:
                continue
            packet.pts -= drop_ticks
            packet.dts -= drop_ticks
            packet.stream = copy
            outside.mux(packet)
    return target


def collect(path: Path, numbers: list[int]) -> None:
    """Append the number of each frame as it comes, so that those before an error are known."""
    numbers.extend(number_of(frame.pixels) for frame in open_video(path).frames())


def test_frames_come_in_order_with_exact_times(numbered_clip: Path) -> None:
    reader = open_video(numbered_clip)
    frames = list(reader.frames())
    assert [number_of(f.pixels) for f in frames] == list(range(150))
    assert [f.index for f in frames] == list(range(150))
    assert [f.time_s for f in frames] == [Fraction(1001 * n, 30000) for n in range(150)]
    assert frames[0].pixels.dtype == torch.uint8
    assert frames[0].pixels.is_contiguous()
    meta = reader.meta
    assert (meta.width, meta.height, meta.num_frames, meta.num_frames_source) == (96, 64, 150, "counted")
    assert (meta.fps, meta.is_variable_rate, meta.rotation, meta.has_audio) == (Fraction(30000, 1001), False, 0, False)
    assert meta.duration_s == pytest.approx(150 * 1001 / 30000)
    assert (meta.color_matrix, meta.color_range, meta.assumed) == ("bt709", "limited", ())


@pytest.mark.parametrize("start", [1, 2, 47, 48, 49, 95, 100, 149, 150, 400])
def test_seeking_equals_reading_through(numbered_clip: Path, start: int) -> None:
    reader = open_video(numbered_clip)
    whole = list(reader.frames())
    part = list(reader.frames(start, start + 5))
    assert [f.index for f in part] == list(range(start, min(start + 5, 150))) if start < 150 else not part
    for frame in part:
        assert frame.time_s == whole[frame.index].time_s
        assert torch.equal(frame.pixels, whole[frame.index].pixels)


def test_ranges(numbered_clip: Path) -> None:
    reader = open_video(numbered_clip)
    assert [f.index for f in reader.frames(0, 3)] == [0, 1, 2]
    assert not list(reader.frames(5, 5))
    assert [f.index for f in reader.frames(148)] == [148, 149]
    with pytest.raises(ValueError, match="no range"):
        reader.frames(3, 2)
    with pytest.raises(ValueError, match="no range"):
        reader.frames(-1)


def test_readers_are_independent_and_can_be_pickled(numbered_clip: Path) -> None:
    reader = open_video(numbered_clip)
    first, second = reader.frames(), reader.frames(10)
    numbers = [(number_of(a.pixels), number_of(b.pixels)) for a, b in zip(first, second, strict=False)][:5]
    assert numbers == [(n, n + 10) for n in range(5)]
    again = pickle.loads(pickle.dumps(reader))
    assert number_of(next(again.frames(77)).pixels) == 77


def test_meta_is_json(numbered_clip: Path) -> None:
    facts = json.loads(json.dumps(open_video(numbered_clip).meta.to_dict()))
    assert facts["fps"] == "30000/1001"
    assert facts["num_frames"] == 150
    assert facts["notes"] == []


def test_edit_list_hides_frames(numbered_clip: Path, tmp_path: Path) -> None:
    # The cut falls between key frames (every 48), so that frames must be decoded but not shown.
    clip = copy_packets(numbered_clip, tmp_path / "cut.mp4", drop_ticks=60 * 1001)
    reader = open_video(clip)
    frames = list(reader.frames())
    assert [number_of(f.pixels) for f in frames] == list(range(60, 150))
    assert reader.meta.num_frames == 90
    assert [f.time_s for f in frames] == [Fraction(1001 * n, 30000) for n in range(90)]
    assert number_of(next(reader.frames(31)).pixels) == 91
    with pytest.raises(InputError, match="edit list|counts"):
        open_video(clip, backend="decord")


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".flv", ".mov"])
def test_containers(numbered_clip: Path, tmp_path: Path, suffix: str) -> None:
    reader = open_video(copy_packets(numbered_clip, tmp_path / f"clip{suffix}"))
    frames = list(reader.frames())
    assert [number_of(f.pixels) for f in frames] == list(range(150))
    assert reader.meta.num_frames == 150
    assert abs(reader.meta.fps - Fraction(30000, 1001)) < Fraction(1, 100)
    assert not reader.meta.is_variable_rate
    assert [number_of(f.pixels) for f in reader.frames(100, 103)] == [100, 101, 102]


def test_variable_rate_times_come_back(tmp_path: Path) -> None:
    from latentvid.video.writer import VideoWriter

    times = [Fraction(t, 16000) for t in np.cumsum([0, 320, 528, 6400, 640, 400, 1600, 320, 9000, 700]).tolist()]
    path = tmp_path / "vfr.mp4"
    with VideoWriter(path, fps=10, width=96, height=64, time_base=Fraction(1, 16000)) as writer:
        writer.write(numbered(10), times)
    reader = open_video(path)
    frames = list(reader.frames())
    assert [f.time_s for f in frames] == times
    assert [number_of(f.pixels) for f in frames] == list(range(10))
    assert reader.meta.is_variable_rate
    assert number_of(next(reader.frames(8)).pixels) == 8


@pytest.mark.parametrize(
    ("rotation", "matrix", "turn"),
    [
        (0, [1, 0, 0, 1], lambda a: a),
        (90, [0, 1, -1, 0], lambda a: np.rot90(a, -1)),
        (180, [-1, 0, 0, -1], lambda a: np.rot90(a, 2)),
        (270, [0, -1, 1, 0], lambda a: np.rot90(a, 1)),
        (0, [-1, 0, 0, 1], lambda a: a[:, ::-1]),
        (90, [0, -1, -1, 0], lambda a: np.rot90(a[:, ::-1], -1)),
    ],
)
def test_display_matrix(rotation: int, matrix: list[int], turn) -> None:
    a, b, c, d = (v << 16 for v in matrix)
    orientation = from_matrix(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32))
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert orientation.rotation == rotation
    assert np.array_equal(orientation.apply(picture), turn(picture))
    assert orientation.size(4, 2) == turn(picture).shape[1::-1]


def test_skewed_matrix_is_not_applied() -> None:
    assert from_matrix(np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], np.int32)) == Orientation(
        is_exact=False
    )


def test_exif_orientation(tmp_path: Path) -> None:
    picture = numbered(1)[0].permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    Image.fromarray(np.rot90(picture).copy()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    reader = open_video(tmp_path / "turned.jpg")
    assert (reader.meta.width, reader.meta.height, reader.meta.rotation) == (96, 64, 90)
    shown = next(reader.frames()).pixels.permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("name", ["still.png", "still.webp", "still.bmp", "still.tiff", "100%03d.png", "[a]*.png"])
def test_stills_are_clips_of_one_frame(tmp_path: Path, name: str) -> None:
    picture = numbered(1)[0]
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    reader = open_video(tmp_path / name)
    assert torch.equal(read(tmp_path / name)[0], picture)
    assert reader.meta.num_frames == 1
    assert "fps" in reader.meta.assumed


def test_animations(tmp_path: Path) -> None:
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in numbered(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 50, 200, 100])
    frames = list(open_video(tmp_path / "a.gif").frames())
    assert [f.time_s for f in frames] == [Fraction(t, 100) for t in (0, 10, 15, 35)]
    assert [number_of(f.pixels) for f in frames] == [0, 1, 2, 3]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100, lossless=True)
    with pytest.raises(InputError, match="animated WebP"):
        open_video(tmp_path / "a.webp")


def test_decord_is_an_independent_witness(numbered_clip: Path) -> None:
    pytest.importorskip("decord")
    ours = list(open_video(numbered_clip).frames())
    theirs = list(open_video(numbered_clip, backend="decord").frames())
    assert len(ours) == len(theirs) == 150
    for a, b in zip(ours, theirs, strict=True):
        assert (a.index, a.time_s, number_of(a.pixels)) == (b.index, b.time_s, number_of(b.pixels))
        # Its scaler takes the nearest chroma sample where ours interpolates: edges differ, the mean hardly does.
        assert (a.pixels.float() - b.pixels.float()).abs().mean() < 3


def test_decord_refuses_what_it_reads_wrong(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    clip = write(tmp_path / "clip.mkv", numbered(3), codec="ffv1")
    with pytest.raises(InputError, match="decord backend cannot be used"):
        open_video(clip, backend="decord")


def test_unknown_backend(numbered_clip: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'decord'"):
        open_video(numbered_clip, backend="decrod")


def test_missing_decord_says_how_to_install(numbered_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(UsageError, match="pip install decord"):
        open_video(numbered_clip, backend="decord")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty"),
        ("junk.mp4", bytes(range(256)) * 40, "not a video|no known video format"),
        ("text.txt", b"hello world\n" * 50, "no known video format"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.mp4\n#EXT-X-ENDLIST\n", "no known video"),
        ("list.mp4", b"ffconcat version 1.0\nfile clip.mp4\n", "no known video format"),
    ],
)
def test_unreadable_files_get_a_sentence(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        open_video(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_and_sound(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        open_video(tmp_path)
    with av.open(str(tmp_path / "sound.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(InputError, match="only sound"):
        open_video(tmp_path / "sound.wav")


def test_absurd_sizes_are_refused_before_they_cost_memory(tmp_path: Path) -> None:
    header = b"\x00\x00\x00\x0dIHDR" + (40000).to_bytes(4, "big") + (40000).to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    import zlib

    chunk = header + zlib.crc32(header[4:]).to_bytes(4, "big")
    data = zlib.compress(bytes(1000))
    body = len(data).to_bytes(4, "big") + b"IDAT" + data + zlib.crc32(b"IDAT" + data).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + body + b"\0\0\0\0IEND\xaeB`\x82")
    with pytest.raises(InputError, match="40000x40000|cannot be decoded"):
        open_video(tmp_path / "bomb.png")


@pytest.mark.parametrize(("suffix", "share"), [(".mp4", 0.5), (".mp4", 0.9), (".mkv", 0.5), (".mkv", 0.97)])
def test_cut_off_files(numbered_clip: Path, tmp_path: Path, suffix: str, share: float) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = copy_packets(numbered_clip, tmp_path / f"whole{suffix}", **options)
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: int(len(content) * share)])
    good: list[int] = []
    with pytest.raises(InputError, match="only its first .* frames can be decoded"):
        collect(cut, good)
    assert good == list(range(len(good)))
    assert len(good) > 40
    reader = open_video(cut, allow_truncated=True)
    frames = list(reader.frames())
    assert [number_of(f.pixels) for f in frames] == list(range(len(frames)))
    assert reader.meta.is_truncated
    assert reader.meta.num_frames == len(frames)
    assert any("only the first" in note for note in reader.meta.notes)


def test_cut_at_a_packet_boundary_is_noticed(numbered_clip: Path, tmp_path: Path) -> None:
    whole = copy_packets(numbered_clip, tmp_path / "whole.mp4", movflags="faststart")
    with av.open(str(whole)) as container:
        ends = sorted(p.pos + p.size for p in container.demux(video=0) if p.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: ends[80]])
    for start in (0, 50, 500):
        with pytest.raises(InputError, match="cut short"):
            list(open_video(cut).frames(start))


def test_damaged_frames_are_not_passed_off_as_whole(numbered_clip: Path, tmp_path: Path) -> None:
    content = bytearray(copy_packets(numbered_clip, tmp_path / "whole.mp4", movflags="faststart").read_bytes())
    with av.open(str(tmp_path / "whole.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, size = packets[60]
    content[position + 5 : position + size] = bytes(size - 5)
    (tmp_path / "hurt.mp4").write_bytes(content)
    good: list[int] = []
    with pytest.raises(InputError, match="damaged"):
        collect(tmp_path / "hurt.mp4", good)
    assert good == list(range(len(good)))
    assert 40 < len(good) < 150


def test_times_strictly_increase_even_without_any_in_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", numbered(12))
    raw = tmp_path / "clip.h264"
    with av.open(str(source)) as inside, av.open(str(raw), "w", format="h264") as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for packet in inside.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                outside.mux(packet)
    frames = list(open_video(raw).frames())
    assert [number_of(f.pixels) for f in frames] == list(range(12))
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))


def test_sizes_that_change_are_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a.ts.mp4", patches(3, 64, 96)), write(tmp_path / "b.ts.mp4", patches(3, 48, 80))]
    stream_bytes = b"".join(copy_packets(part, tmp_path / f"{i}.h264").read_bytes() for i, part in enumerate(parts))
    (tmp_path / "both.h264").write_bytes(stream_bytes)
    reader = open_video(tmp_path / "both.h264")
    frames = list(reader.frames())
    assert len(frames) == 6
    assert all(tuple(f.pixels.shape) == (3, 64, 96) for f in frames)
    assert any("change size" in note for note in reader.meta.notes)


def test_a_clip_without_one_good_frame_is_refused_even_where_prefixes_are_allowed(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", numbered(1))
    reader = open_video(clip, allow_truncated=True)
    whole = clip.read_bytes()
    clip.write_bytes(whole[: whole.index(b"mdat") + 5])
    with pytest.raises(InputError, match="not one frame|holds no frames"):
        list(reader.frames())
