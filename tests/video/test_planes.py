"""Stored pictures: every value of a clip's own pixel format comes back, and new ones are coded as the clip is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentvid.video.color import ToRgb
from latentvid.video.planes import planes_of, stored_frames
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter
from tests.video.clips import native, planes, same

BT2020 = (9, 1, 18, 9)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "expected"),
    [
        ("ffv1", "yuv420p", (48, 32), "h264-lossless"),
        ("mjpeg", "yuvj422p", (48, 31), "h264-lossless"),
        ("ffv1", "yuv444p", (47, 31), "h264-lossless"),
        ("ffv1", "yuv422p10le", (48, 32), "h264-lossless"),
        ("ffv1", "gray", (47, 31), "h264-lossless"),
        ("rawvideo", "uyvy422", (48, 32), "h264-lossless"),
        ("ffv1", "bgr0", (48, 32), "h264-lossless"),
        ("ffv1", "yuv420p", (47, 31), "ffv1"),
        ("ffv1", "yuv411p", (48, 32), "ffv1"),
        ("ffv1", "yuva420p", (48, 32), "ffv1"),
        ("ffv1", "yuv420p12le", (48, 32), "ffv1"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_value_comes_back(
    tmp_path: Path, codec: str, pix_fmt: str, size: tuple[int, int], expected: str, suffix: str
) -> None:
    name = "clip.avi" if codec == "rawvideo" else "clip.mkv"
    clip = native(tmp_path / name, codec, pix_fmt, width=size[0], height=size[1])
    form = planes_of(clip)
    assert form.lossless_codec(suffix) == expected
    out = tmp_path / f"again{suffix}"
    options = {"codec": expected, "planes": form, "time_base": Fraction(1, 90_000)}
    with VideoWriter(out, fps=12, width=size[0], height=size[1], **options) as writer:  # type: ignore[arg-type]
        for frame in stored_frames(clip, form.pix_fmt):
            writer.write_stored(frame.picture, frame.time_s)
    # H.264 stores grey, and is decoded with colour planes that say nothing.
    compared = {"gray": "gray", "bgr0": "rgb24", "uyvy422": "yuv422p"}.get(pix_fmt)
    assert same(planes(clip, compared), planes(out, compared))
    assert len(planes(out)) == 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colours_shape_and_turn_come_back(tmp_path: Path, suffix: str) -> None:
    given = {"tags": BT2020, "rotation": 90, "sample_aspect_ratio": Fraction(64, 45)}
    clip = native(tmp_path / "clip.mp4", "libx264", "yuv420p10le", **given)  # type: ignore[arg-type]
    form = planes_of(clip)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(32), indexing="ij")
    upright = torch.stack([x * 5 + 40, y * 3 + 60, (x + y) * 2 + 50]).to(torch.uint8)[None].repeat(3, 1, 1, 1)
    out = tmp_path / f"again{suffix}"
    with VideoWriter(out, fps=12, width=32, height=48, planes=form, codec="h264", crf=1) as writer:
        writer.write(upright)
    (mine, theirs) = (open_video(path).meta for path in (clip, out))
    for name in ("rotation", "sample_aspect_ratio", "color_matrix", "color_range", "color_transfer", "color_primaries",
                 "pix_fmt", "width", "height"):  # fmt: skip
        assert getattr(mine, name) == getattr(theirs, name), name
    again = torch.stack([frame.pixels for frame in open_video(out).frames()])
    assert (again.float() - upright.float()).abs().mean() < 2


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv420p", (6, 1, 6, 6)),
        ("yuvj420p", (1, 2, 1, 1)),
        ("yuv422p10le", (9, 1, 14, 9)),
        ("yuv444p10le", BT2020),
        ("yuv444p10le", (9, 1, 16, 9)),
        ("yuv444p10le", (1, 1, 1, 12)),
    ],
)
def test_new_pictures_are_read_as_they_were_meant(
    tmp_path: Path, pix_fmt: str, tags: tuple[int, int, int, int]
) -> None:
    form = planes_of(native(tmp_path / "clip.mp4", "libx264", pix_fmt, tags=tags))
    y, x = np.mgrid[:32, :48]
    rgb = np.stack([x * 4 + 20, y * 5 + 40, (x + y) * 2 + 60], -1).astype(np.uint8)
    coded = form.converter()(rgb)
    coded.colorspace, coded.color_range, coded.color_trc, coded.color_primaries = tags
    error = np.abs(ToRgb(form.color)(coded, 48, 32).astype(float) - rgb)
    assert error.mean() < 1.0
    assert error.max() < 12


def test_interlaced_pictures_stay_so_where_that_is_exact(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme"}
    clip = native(tmp_path / "clip.mkv", "mpeg2video", "yuv420p", width=64, height=64, options=options)
    form = planes_of(clip)
    assert form.is_interlaced
    assert (form.lossless_codec(".mp4"), form.lossless_codec(".mov")) == ("ffv1", "h264-lossless")
    out = tmp_path / "again.mp4"
    with VideoWriter(
        out, fps=12, width=64, height=64, planes=form, codec="ffv1", time_base=Fraction(1, 90_000)
    ) as writer:
        for frame in stored_frames(clip):
            writer.write_stored(frame.picture, frame.time_s)
    assert same(planes(clip), planes(out))
    with av.open(str(out)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
