"""Stills as Pillow shows them, numbered pictures as clips, and interlaced pictures."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from latentvid.core.errors import InputError, UsageError
from latentvid.video.footage import find_named, find_videos
from latentvid.video.numbered import clip_bytes, clip_exists, clip_sha256, numbered_pictures
from latentvid.video.reader import open_video
from tests.video.clips import number_of, numbered, write


def picture(number: int = 5) -> Image.Image:
    return Image.fromarray(numbered(number + 1)[number].permute(1, 2, 0).contiguous().numpy())


def pictures(folder: Path, names: str, numbers: list[int]) -> Path:
    """Write pictures that show the numbers in their names."""
    folder.mkdir(parents=True)
    for number in numbers:
        picture(number).save(folder / (names % number), quality=95)
    return folder


def as_shown(path: Path) -> np.ndarray:
    return next(open_video(path).frames()).pixels.permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_every_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation  # 0 and 9 mean nothing
    picture().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95}))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    found, meta = as_shown(path), open_video(path).meta
    assert found.shape == wanted.shape == (meta.height, meta.width, 3)
    assert np.abs(found - wanted).max() <= 4
    assert any("mirrors" in note for note in meta.notes) == (orientation in (2, 4, 5, 7))


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda p: p[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    ],
)
def test_mirrored_films(tmp_path: Path, matrix: tuple[int, ...], turn: Any) -> None:
    upright = write(tmp_path / "a.mp4", numbered(2))
    content = bytearray(upright.read_bytes())
    place = content.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(content)
    assert np.array_equal(as_shown(tmp_path / "b.mp4"), turn(as_shown(upright)))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("LAB", "tiff"), ("YCbCr", "tiff"), ("L", "jpg"), ("1", "jpg")]
)
def test_other_colours_are_those_of_pillow(tmp_path: Path, mode: str, suffix: str) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(picture(), *profiles, outputMode="LAB")
    else:
        image = picture().convert(mode)
    exif[0x0112] = 6
    assert image is not None
    image.save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert np.abs(as_shown(path) - wanted).max() <= 1
    reader = open_video(path, fps=10)
    assert (reader.meta.num_frames, reader.meta.fps, reader.meta.rotation) == (1, 10, 90)
    assert [len(list(reader.frames(*part))) for part in ((0, 5), (1, 3), (0, 0))] == [1, 0, 0]
    assert reader.counted() == reader.meta


def test_a_cmyk_picture_that_breaks_off(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    with pytest.raises(InputError, match="damaged"):
        list(open_video(tmp_path / "b.jpg").frames())


@pytest.mark.parametrize("names", ["frame_%04d.png", "%d.jpg", "shot2_%d_final.png", "a.%03d.webp"])
def test_numbered_pictures_are_a_clip(tmp_path: Path, names: str) -> None:
    numbers = list(range(8, 13))  # of one and two digits
    folder = pictures(tmp_path / "shot", names, numbers)
    (folder / ".hidden").touch()
    for path in (folder, folder / names):
        reader = open_video(path, fps=12)
        frames = list(reader.frames())
        assert [number_of(frame.pixels) for frame in frames] == numbers
        assert [frame.time_s for frame in frames] == [Fraction(k, 12) for k in range(5)]
        assert [frame.index for frame in reader.frames(3)] == [3, 4]
        meta = reader.meta
        assert (meta.fps, meta.num_frames, meta.num_frames_source, meta.assumed) == (12, 5, "counted", ())
        assert float(meta.duration_s) == pytest.approx(5 / 12)
        assert clip_exists(path)
    assert clip_bytes(folder) == sum(file.stat().st_size for file in folder.glob("*.*") if file.name[0] != ".")
    before = clip_sha256(folder)
    assert before == clip_sha256(folder / names)
    picture(0).save(folder / (names % 9))
    assert clip_sha256(folder) != before


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "shot", "%03d.png", [1, 2, 5])
    with pytest.raises(UsageError, match="--fps"):
        open_video(folder)
    assert any("2 of its numbers are missing" in note for note in open_video(folder, fps=5).meta.notes)
    with pytest.raises(InputError, match="no picture of such a name"):
        open_video(folder / "x_%d.png", fps=5)
    picture(1).save(folder / "1.png")
    with pytest.raises(InputError, match="same number"):
        open_video(folder, fps=5)
    (folder / "1.png").rename(folder / "other.png")
    assert numbered_pictures(folder) is None
    with pytest.raises(InputError, match="is a folder"):
        open_video(folder, fps=5)
    for name in ("100%03d.png", "%d.png"):  # files of such a name are no patterns
        picture(3).save(tmp_path / name)
        assert number_of(next(open_video(tmp_path / name).frames()).pixels) == 3


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "shot", "%d.png", [0, 1])
    picture(1).resize((48, 32)).save(folder / "1.png")
    reader = open_video(folder, fps=5)
    assert [tuple(frame.pixels.shape) for frame in reader.frames()] == [(3, 64, 96)] * 2
    assert any("differ in size" in note for note in reader.meta.notes)
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png"):
        list(open_video(folder, fps=5).frames())


def test_finding_numbered_pictures(tmp_path: Path) -> None:
    one = pictures(tmp_path / "in" / "one", "%d.png", [1, 2])
    pictures(tmp_path / "in" / "deep" / "two", "f%d.png", [1, 2])
    picture().save(tmp_path / "in" / "still.png")
    write(tmp_path / "in" / "film.mp4", numbered(2))
    names = lambda *paths, **how: [name for _, name in find_named(paths, **how)]  # noqa: E731
    assert names(tmp_path / "in", numbered=True) == ["deep/two", "film.mp4", "one"]
    assert names(tmp_path / "in", numbered=True, stills=True) == ["deep/two", "film.mp4", "one", "still.png"]
    assert names(tmp_path / "in") == ["film.mp4"]
    assert names(one, numbered=True) == ["one"]
    assert names(one, stills=True) == ["1.png", "2.png"]
    assert names(one / "%d.png") == ["%d.png"]
    assert find_videos([tmp_path / "in" / "o*"], numbered=True) == [one]
    for without_videos in (one, tmp_path / "in" / "deep"):
        with pytest.raises(UsageError, match="--fps"):
            find_videos([without_videos])


@pytest.fixture(scope="module")
def interlaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames at 25 per second, made of the lines of forty, in which a bar moves to the right."""
    path = tmp_path_factory.mktemp("interlaced") / "a.mp4"
    fields = np.full((40, 3, 64, 96), 40, np.uint8)
    for k in range(40):
        fields[k, :, :, 2 * k : 2 * k + 12] = 220
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(
            "libx264", rate=25, options={"flags": "+ildct+ilme", "x264-params": "tff=1:keyint=8", "crf": "10"}
        )
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(20):
            woven = fields[2 * k].copy()
            woven[:, 1::2] = fields[2 * k + 1][:, 1::2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(woven.transpose(1, 2, 0)), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    return path


def combs(pixels: torch.Tensor) -> float:
    """How much lines differ from the mean of their neighbours."""
    luma = pixels.float().mean(0)
    return float((luma[1:-1] - (luma[:-2] + luma[2:]) / 2).abs().mean())


def test_deinterlacing(interlaced: Path) -> None:
    stored, reader = list(open_video(interlaced).frames()), open_video(interlaced, deinterlace=True)
    frames = list(reader.frames())
    assert [(f.index, f.time_s) for f in frames] == [(f.index, f.time_s) for f in stored]
    for before, after in zip(stored, frames, strict=True):
        assert combs(after.pixels) < 0.5 * combs(before.pixels)
    for start, stop in ((0, 3), (1, 4), (9, 11), (19, 20), (15, None), (20, 22)):
        for frame in reader.frames(start, stop):
            assert torch.equal(frame.pixels, frames[frame.index].pixels)
        assert len(list(reader.frames(start, stop))) == max(0, min(stop or 20, 20) - start)
    assert any("are interlaced" in note for note in open_video(interlaced).meta.notes)
    assert any("deinterlaced (bwdif)" in note for note in reader.meta.notes)


def test_what_is_not_interlaced_stays_as_it_is(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.mp4", numbered(5))
    reader = open_video(clip, deinterlace=True)
    for mine, theirs in zip(reader.frames(), open_video(clip).frames(), strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
    assert any("not marked as interlaced" in note for note in reader.meta.notes)


def test_a_rate_that_is_stated_is_kept(tmp_path: Path) -> None:
    meta = open_video(write(tmp_path / "a.mp4", numbered(3), 25), fps=12).meta
    assert meta.fps == 25
    assert any("25 frames per second, which is kept" in note for note in meta.notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="not a regular file"):
        open_video(tmp_path / "a.jpg")


def test_decord_is_not_asked_to_deinterlace(interlaced: Path) -> None:
    pytest.importorskip("decord")
    with pytest.raises(InputError, match="does not deinterlace"):
        open_video(interlaced, backend="decord", deinterlace=True)
