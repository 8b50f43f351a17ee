"""HDR and wide gamuts against the standards' own numbers and closed forms."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from latentvid.video import tone
from latentvid.video.color import ColorReading, ToRgb, read_color
from latentvid.video.reader import open_video


def codes(*values: float) -> np.ndarray:
    """Grey pixels of these codes in [0, 1], uint16 [1 n 3]."""
    return np.repeat(np.rint(np.array(values) * tone.FULL).astype(np.uint16)[None, :, None], 3, axis=2)


def test_pq_is_that_of_the_standard() -> None:
    # ITU-R BT.2408, table 1: reference white is 58 % PQ; 1000 cd/m2 are 75 %.
    assert tone.pq_code(np.array([203.0, 1000.0, 10_000.0])) == pytest.approx([0.5807, 0.7518, 1], abs=1e-4)
    light = np.array([0.01, 1, 100, 4000])
    assert tone.pq_light(tone.pq_code(light)) == pytest.approx(light, rel=1e-6)


def test_hlg_is_that_of_the_standard() -> None:
    # BT.2100: half the code is a twelfth of the light, and the whole is all; reference white is 75 % of the code.
    assert tone.hlg_scene(np.array([0, 0.5, 1])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)
    white = tone.hlg_scene(np.array(0.75))
    assert 1000 * white**1.2 == pytest.approx(203, abs=1)


def test_the_matrix_is_that_of_the_standard() -> None:
    bt2087 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert tone.to_bt709("bt2020") == pytest.approx(np.array(bt2087), abs=1e-4)
    assert tone.to_bt709("bt709") == pytest.approx(np.eye(3), abs=1e-9)
    assert tone.to_bt709("display-p3").sum(axis=1) == pytest.approx(np.ones(3))  # white stays white


def test_the_roll_off_begins_as_the_identity_and_ends_at_white() -> None:
    light = np.linspace(0.01, 1000, 5000)
    rolled = tone.roll_off(light)
    assert rolled[light < 85] == pytest.approx(light[light < 85], rel=1e-6)
    assert rolled[-1] == pytest.approx(tone.WHITE)
    assert (np.diff(rolled) > 0).all()
    assert tone.roll_off(np.array([1e4])) == pytest.approx(tone.WHITE)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_greys_are_the_closed_form(transfer: str) -> None:
    values = np.arange(0, tone.FULL + 1, 15) / tone.FULL
    found = tone.to_sdr(codes(*values), transfer=transfer, primaries="bt2020")[0]
    assert (found.max(axis=1) - found.min(axis=1)).max() <= 1
    light = tone.pq_light(values) if transfer == "pq" else 1000 * tone.hlg_scene(values) ** 1.2
    expected = 255 * (tone.roll_off(light) / tone.WHITE) ** (1 / 2.4)
    assert np.abs(found[:, 1] - expected).max() < 1
    assert (found[0] == 0).all()
    assert (found[-1] == 255).all()


@pytest.mark.parametrize("primaries", ["bt2020", "display-p3"])
def test_colours_of_bt709_come_back_from_wider_gamuts(primaries: str) -> None:
    wanted = np.random.default_rng(0).integers(16, 240, (4, 300, 3))
    light = (wanted / 255) ** 2.4 @ np.linalg.inv(tone.to_bt709(primaries)).T
    stored = np.rint(light ** (1 / 2.4) * tone.FULL).astype(np.uint16)
    assert np.abs(tone.to_sdr(stored, transfer="bt709", primaries=primaries).astype(int) - wanted).max() <= 1


def test_hues_stay_where_hdr_is_bright() -> None:
    red = np.array([[[0.9, 0.55, 0.55]]]) * tone.FULL
    found = tone.to_sdr(red.astype(np.uint16), transfer="pq", primaries="bt709")[0, 0] / 255
    ratio = tone.pq_light(np.array([0.9, 0.55]))
    assert (found[0] / found[1]) ** 2.4 == pytest.approx(ratio[0] / ratio[1], rel=0.1)


def frame(transfer: int, primaries: int, matrix: int) -> av.VideoFrame:
    picture = av.VideoFrame(32, 16, "yuv420p10le")
    for plane, value in zip(picture.planes, (600, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    picture.colorspace, picture.color_trc, picture.color_primaries = matrix, transfer, primaries
    return picture


def test_what_is_converted_and_what_is_said() -> None:
    hlg = read_color(frame(18, 9, 9))
    assert "tone-mapped" in hlg.notes[0]
    # Code 600 of 10 bits limited is 61.2 %.
    share = (600 - 64) / 876
    expected = 255 * (tone.roll_off(1000 * tone.hlg_scene(np.array([share])) ** 1.2) / tone.WHITE) ** (1 / 2.4)
    assert np.abs(ToRgb(hlg)(frame(18, 9, 9), 32, 16) - expected).max() <= 1.5
    untagged = read_color(frame(2, 2, 9))
    assert (untagged.gamut, untagged.is_converted) == ("bt2020", True)
    plain = read_color(frame(1, 1, 1))
    assert not plain.is_converted
    assert plain.notes == ("10 bits are rounded to 8",)


@pytest.mark.parametrize("size", [(128, 96), (35, 37)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv420p"])
def test_the_scaler_gives_the_same_colours_in_more_bits(pix_fmt: str, size: tuple[int, int]) -> None:
    """The scaler's packed 16 bits once came out purple."""
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(size[1] // 8 + 1, 0)
    rgb = rgb.repeat(size[0] // 8 + 1, 1)[: size[1], : size[0]]
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    stored = VideoReformatter().reformat(picture, format=pix_fmt, dst_colorspace=Colorspace.BT2020)
    stored.colorspace, stored.color_range = 9, 1
    eight = ToRgb(ColorReading("bt2020", "limited", None, "bt709", (), ()))(stored, *size).astype(float)
    wide = VideoReformatter().reformat(
        stored, *size, tone.PIX_FMT, src_colorspace=Colorspace.BT2020, src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )  # fmt: skip
    assert np.abs(wide.to_ndarray() / tone.FULL * 255 - eight).mean() < 1


def test_a_real_hlg_file_uses_the_range_of_sdr(assets: Path) -> None:
    reader = open_video(assets / "data" / "awkward" / "hdr_hlg_10bit_hevc.mp4")
    assert "HDR (HLG) is tone-mapped" in reader.meta.notes[0]
    pixels = next(reader.frames()).pixels.float()
    assert pixels.max() > 200
    # A white door between grey walls: hardly any colour.
    assert (pixels.max(dim=0).values - pixels.min(dim=0).values).mean() < 30
