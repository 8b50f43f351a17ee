"""Footage as clips: the same item for the same number, crops of real frames, reasons for what is skipped."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentvid.core.errors import InputError
from latentvid.data.footage import DecodedClips, FootageClips, resize, scan
from latentvid.finetuning.footage import find_footage
from latentvid.video.meta import VideoMeta
from latentvid.video.reader import PyAVReader, Reading, open_video


def write(path: Path, num_frames: int, height: int = 48, width: int = 64) -> Path:
    """A lossless clip: frame i has brightness 4 i at its left and a gradient to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(12))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for i in range(num_frames):
            row = np.broadcast_to(4 * i + np.arange(width), (height, width))
            picture = np.repeat(row[..., None], 3, 2).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("footage")
    write(home / "long.mkv", 30)
    (home / "long.txt").write_text("  a bright ramp \nsecond line", encoding="utf-8")
    write(home / "other.mkv", 12)
    write(home / "short.mkv", 3)
    (home / "broken.mp4").write_bytes(b"no video at all")
    return home


def test_scan_says_why_files_are_skipped(folder: Path) -> None:
    found, skipped = scan([folder], min_frames=8)
    assert [clip.path.name for clip in found] == ["long.mkv", "other.mkv"]
    assert [clip.caption for clip in found] == ["a bright ramp", ""]
    assert (found[0].num_frames, found[0].height, found[0].width) == (30, 48, 64)
    reasons = {path.name: reason for path, reason in skipped}
    assert set(reasons) == {"broken.mp4", "short.mkv"}
    assert "3 frames" in reasons["short.mkv"]


def test_items_do_not_depend_on_order_or_memory(folder: Path) -> None:
    first = FootageClips([folder], 8, 32, (1, 2), seed=5)
    second = FootageClips([folder], 8, 32, (1, 2), seed=5, cache_bytes=0)
    wanted = [3, 0, 11, 3]
    there = {i: first.item(i) for i in wanted}
    for i in reversed(wanted):
        video, clip = second.item(i)
        assert torch.equal(video, there[i][0])
        assert clip == there[i][1]
    assert not torch.equal(first.item(0)[0], FootageClips([folder], 8, 32, seed=6).item(0)[0])


def steps(video: Tensor) -> list[int]:
    """Return how much brighter each frame is than the one before."""
    return torch.diff(video[:, 0].float().mean((1, 2))).round().int().tolist()


def test_frames_of_a_crop_share_place_and_stride(folder: Path) -> None:
    clips = FootageClips([folder / "long.mkv"], 6, 48, (1, 3), mirror=False, seed=1)
    seen = set()
    for i in range(12):
        video, _ = clips.item(i)
        assert video.shape == (6, 3, 48, 48)
        assert video.dtype == torch.uint8
        assert len(set(steps(video))) == 1
        seen.add(steps(video)[0])
        assert (torch.diff(video[0, 0].int(), dim=1) == 1).all()  # an unscaled crop of the gradient
    assert seen == {4, 12}


def test_half_of_the_items_are_mirrored_and_some_stand_still(folder: Path) -> None:
    clips = FootageClips([folder / "long.mkv"], 4, 48, still_share=0.5, seed=2)
    videos = [clips.item(i)[0] for i in range(40)]
    mirrored = sum(int(v[0, 0, 0, 0]) > int(v[0, 0, 0, -1]) for v in videos)
    still = sum(steps(v) == [0, 0, 0] for v in videos)
    assert 8 <= mirrored <= 32
    assert 8 <= still <= 32


def test_strides_that_do_not_fit_are_left_out(folder: Path) -> None:
    clips = FootageClips([folder / "other.mkv"], 8, 32, (1, 5), seed=0)
    assert all(set(steps(clips.item(i)[0])) == {4} for i in range(6))


def test_small_pictures_are_enlarged(folder: Path) -> None:
    assert FootageClips([folder], 4, 96).item(0)[0].shape == (4, 3, 96, 96)


def test_memory_is_bounded(folder: Path) -> None:
    found, _ = scan([folder], min_frames=8)
    size = 3 * 48 * 64
    cache = DecodedClips(4 * 30 * size)
    for clip in found * 3:
        cache.frames(clip, 2, 6)
        assert cache.num_bytes <= cache.max_bytes
    assert cache.num_bytes == 42 * size
    tiny = DecodedClips(100)
    assert torch.equal(tiny.frames(found[0], 2, 6), cache.frames(found[0], 2, 6))
    assert tiny.num_bytes == 0


def test_nothing_usable_is_one_sentence(folder: Path) -> None:
    with pytest.raises(InputError, match="none of 1 files"):
        FootageClips([folder / "broken.mp4"], 4)
    with pytest.raises(InputError, match="no such file"):
        FootageClips([folder / "missing"], 4)


def test_resizing_keeps_the_mean() -> None:
    video = torch.randint(0, 256, (2, 3, 40, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert resize(video, 10, 15).float().mean() == pytest.approx(video.float().mean().item(), abs=1.5)
    assert resize(video, 40, 60) is video


def test_real_footage(assets: Path) -> None:
    clips = FootageClips([assets / "data" / "sky"], 8, 64, (1, 2), seed=0)
    video, clip = clips.item(0)
    assert video.shape == (8, 3, 64, 64)
    assert clip.caption == ""
    assert video.float().std() > 1


def test_footage_of_numbered_pictures(tmp_path: Path) -> None:
    shot = tmp_path / "in" / "shot"
    shot.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((48, 64, 3), 20 * number, np.uint8)).save(shot / f"{number}.png")
    found, _ = scan([tmp_path / "in"], min_frames=8, reading=Reading(Fraction(12)))
    assert [(clip.path, clip.num_frames) for clip in found] == [(shot, 12)]
    frames = DecodedClips(1 << 24).frames(found[0], 10, 12)
    assert frames.float().mean((1, 2, 3)).tolist() == [200, 220]
    footage = find_footage(
        [tmp_path / "in", write(tmp_path / "a.mkv", 9)], min_frames=8, min_side=16, reading=found[0].reading
    )
    assert [clip.path for clip in (*footage.train, *footage.held_out)] == [shot, tmp_path / "a.mkv"]


def test_claimed_frames_are_counted_where_they_decide(tmp_path: Path) -> None:
    # VP8 has packets that are never shown, so its frames are claims.
    clip = tmp_path / "a.mkv"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libvpx", rate=Fraction(12), options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            picture = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    reader = open_video(clip)
    assert (reader.meta.num_frames_source, reader.counted().num_frames_source) == ("claimed", "counted")
    counted: list[Path] = []
    count = PyAVReader.counted

    def noted(reader: PyAVReader) -> VideoMeta:
        counted.append(Path(reader.meta.path))
        return replace(count(reader), num_frames=9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PyAVReader, "counted", noted)
        assert [found.num_frames for found in scan([clip], min_frames=5)[0]] == [12]  # sure to suffice
        assert not counted
        found, skipped = scan([clip], min_frames=10)
        assert counted == [clip]
        assert not found
        assert "9 frames, and 10 are needed" in skipped[0][1]
