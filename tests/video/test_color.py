"""Colour conversion against the closed form of its matrix, and round trips of saturated colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange
from torch import Tensor

from latentvid.video.color import ColorReading, ToRgb, read_color
from latentvid.video.reader import open_video
from tests.video.clips import patches, read, write

_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def closed_form(yuv: np.ndarray, matrix: str, is_full: bool, bits: int) -> np.ndarray:
    """ITU-R BT.601/709/2020 decoding of integer [h w 3] to RGB 0..255, in float64."""
    red, blue = _WEIGHTS[matrix]
    unit = 1 << (bits - 8)
    if is_full:
        luma, chroma = yuv[..., 0] / (256 * unit - 1), (yuv[..., 1:] - 128 * unit) / (256 * unit - 1)
    else:
        luma, chroma = (yuv[..., 0] - 16 * unit) / (219 * unit), (yuv[..., 1:] - 128 * unit) / (224 * unit)
    r = luma + 2 * (1 - red) * chroma[..., 1]
    b = luma + 2 * (1 - blue) * chroma[..., 0]
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1), 0, 1) * 255


def yuv_frame(pix_fmt: str, values: np.ndarray, bits: int) -> av.VideoFrame:
    """A frame of flat 16-pixel squares with the given [rows columns 3] values."""
    big = values.repeat(16, 0).repeat(16, 1)
    frame = av.VideoFrame(big.shape[1], big.shape[0], pix_fmt)
    for i, plane in enumerate(frame.planes):
        step_y, step_x = big.shape[0] // plane.height, big.shape[1] // plane.width
        data = big[::step_y, ::step_x, i].astype(np.uint8 if bits == 8 else "<u2")
        rows = np.zeros((plane.height, plane.line_size // data.itemsize), data.dtype)
        rows[:, : data.shape[1]] = data
        plane.update(rows.tobytes())
    return frame


@pytest.mark.parametrize("matrix", sorted(_WEIGHTS))
@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(
    ("pix_fmt", "bits"), [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10)]
)
def test_conversion_is_the_closed_form(matrix: str, is_full: bool, pix_fmt: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    low, high = (0, 256) if is_full else (16, 236)
    values = rng.integers(low << (bits - 8), high << (bits - 8), (6, 8, 3))
    frame = yuv_frame(pix_fmt, values, bits)
    convert = ToRgb(ColorReading(matrix, "full" if is_full else "limited", None, "bt709", (), ()))
    ours = convert(frame, frame.width, frame.height).reshape(6, 16, 8, 16, 3)[:, 4:12, :, 4:12]
    expected = closed_form(values.astype(float), matrix, is_full, bits)[:, None, :, None]
    # Half a level is rounding; 10 bit full range is shifted rather than divided (1020 for 1023), which costs 0.75 more.
    assert np.abs(ours - expected).max() <= (1.3 if bits == 10 and is_full else 0.55)


@pytest.mark.parametrize(
    ("size", "matrix"), [((640, 360), "bt601"), ((1024, 576), "bt601"), ((1280, 536), "bt709"), ((1080, 720), "bt709")]
)
def test_untagged_matrix_follows_size(size: tuple[int, int], matrix: str) -> None:
    reading = read_color(av.VideoFrame(*size, "yuv420p"))
    assert (reading.matrix, reading.range) == (matrix, "limited")
    assert reading.assumed == ("color_matrix", "color_range")


def test_tags_decide() -> None:
    frame = av.VideoFrame(320, 240, "yuv420p")
    frame.colorspace, frame.color_range = 1, ColorRange.JPEG
    assert read_color(frame).matrix == "bt709"
    assert read_color(frame).range == "full"
    assert not read_color(frame).assumed
    assert read_color(av.VideoFrame(320, 240, "yuvj420p")).range == "full"
    assert read_color(av.VideoFrame(320, 240, "gray")).range == "full"
    assert read_color(av.VideoFrame(320, 240, "rgb24")).matrix == "rgb"


def test_hdr_and_depth_are_noted() -> None:
    frame = av.VideoFrame(320, 240, "yuv420p10le")
    frame.colorspace, frame.color_trc, frame.color_primaries = 9, 16, 9
    notes = " ".join(read_color(frame).notes)
    assert "HDR (PQ)" in notes
    assert "10 bits" in notes


def centres(video: Tensor) -> Tensor:
    """The inner 8x8 of each 16-pixel square, where chroma subsampling has no say."""
    t, c, h, w = video.shape
    return video.reshape(t, c, h // 16, 16, w // 16, 16)[:, :, :, 4:12, :, 4:12].int()


@pytest.mark.parametrize("color", ["bt709", "bt601"])
def test_saturated_colours_survive_420(tmp_path: Path, color: str) -> None:
    video = patches(2, 96, 128)
    clip = write(tmp_path / "clip.mp4", video, color=color, crf=4)
    assert open_video(clip).meta.color_matrix == color
    assert open_video(clip).meta.color_range == "limited"
    # 8-bit limited YUV resolves RGB to about 2 levels; the encoder adds one.
    assert (centres(read(clip)) - centres(video)).abs().max() <= 4


def test_saturated_colours_survive_444(tmp_path: Path) -> None:
    video = patches(2, 97, 131)
    assert (read(write(tmp_path / "clip.mp4", video, crf=4)).int() - video.int()).abs().max() <= 3


def test_another_decoder_sees_the_same_colours(tmp_path: Path) -> None:
    decord = pytest.importorskip("decord")
    for size in ((96, 128), (720, 1280)):
        video = patches(1, *size)
        clip = write(tmp_path / f"{size[0]}.mp4", video, crf=4)
        theirs = torch.from_numpy(decord.VideoReader(str(clip))[0].asnumpy()).permute(2, 0, 1)[None]
        # Its scaler is off by up to 3 levels; a wrong matrix would be off by 20 and more.
        assert (centres(theirs) - centres(video)).abs().max() <= 6


def encode_as(path: Path, frames: list[av.VideoFrame], codec: str, pix_fmt: str) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        for frame in frames:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    clip = encode_as(tmp_path / "grey.mkv", [av.VideoFrame.from_ndarray(ramp, "gray")], "ffv1", "gray")
    assert torch.equal(read(clip)[0], torch.from_numpy(ramp).expand(3, 16, 256))


def test_ten_bits_become_eight(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(64, 940, (6, 8, 3))
    clip = encode_as(tmp_path / "deep.mkv", [yuv_frame("yuv420p10le", values, 10)], "ffv1", "yuv420p10le")
    reader = open_video(clip)
    assert reader.meta.bit_depth == 10
    assert any("10 bits" in note for note in reader.meta.notes)
    ours = read(clip)[0].permute(1, 2, 0).numpy().reshape(6, 16, 8, 16, 3)[:, 4:12, :, 4:12]
    assert np.abs(ours - closed_form(values.astype(float), "bt601", False, 10)[:, None, :, None]).max() <= 0.55
