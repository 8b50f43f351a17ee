"""Pixels to tensors and back, padding that can be undone, sheets, and finding files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentvid.core.errors import InputError, UsageError
from latentvid.video.footage import find_named, find_videos
from latentvid.video.pixels import center_crop, frames_to_tensor, pad_to_multiple, resize, to_float, to_uint8
from latentvid.video.sheet import contact_sheet, save_contact_sheet
from tests.video.clips import numbered


def test_all_bytes_survive_the_float_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_float(levels).min() == -1
    assert to_float(levels).max() == 1
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert torch.equal(to_uint8(torch.tensor([-3.0, 3.0, 0.0])), torch.tensor([0, 255, 128], dtype=torch.uint8))
    assert torch.equal(to_uint8(to_float(levels).to(torch.bfloat16).float()) > 100, levels > 100)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_stacking() -> None:
    video = numbered(3)
    assert torch.equal(to_uint8(frames_to_tensor(iter(video))), video)
    with pytest.raises(ValueError, match="no frames"):
        frames_to_tensor([])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.sampled_from(["replicate", "reflect"]))
def test_padding_is_undone(height: int, width: int, multiple: int, mode: str) -> None:
    video = torch.rand(2, 3, height, width)
    padded, padding = pad_to_multiple(video, multiple, mode=mode)  # type: ignore[arg-type]
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple
    assert torch.equal(padding.undo(padded), video)
    assert torch.equal(padded[..., -1, -1], video[..., -1, -1]) or mode == "reflect"


def test_padding_keeps_bytes() -> None:
    video = numbered(1, 61, 97)
    padded, padding = pad_to_multiple(video, 8)
    assert padded.dtype == torch.uint8
    assert torch.equal(padding.undo(padded), video)


def test_resize_agrees_with_pillow() -> None:
    video = numbered(1)
    ours = resize(video, 24, 40)[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(video[0].permute(1, 2, 0).numpy()).resize((40, 24), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert resize(to_float(video), 24, 40).abs().max() <= 1
    assert resize(video, 64, 96) is video


def test_center_crop() -> None:
    video = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert torch.equal(center_crop(video, 2, 3), video[..., 1:3, 1:4])
    with pytest.raises(ValueError, match="cannot crop"):
        center_crop(video, 5, 3)


def test_contact_sheet(tmp_path: Path) -> None:
    video = numbered(10)
    sheet = contact_sheet(video, columns=4, scale=2)
    assert sheet.size == (4 * (192 + 2) + 2, 3 * (128 + 2) + 2)
    # Bottom right pixel of frame 5 (second row, second column), far from its label.
    assert sheet.getpixel((2 + 194 + 191, 2 + 130 + 127)) == tuple(video[5, :, 63, 95].tolist())
    save_contact_sheet(tmp_path / "sheet.png", to_float(video), columns=4)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (4 * 98 + 2, 3 * 66 + 2)
    with pytest.raises(UsageError, match="exists"):
        save_contact_sheet(tmp_path / "sheet.png", video, overwrite=False)
    with pytest.raises(ValueError, match="needs frames"):
        contact_sheet(video[0])


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "sub/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = lambda paths: [p.relative_to(tmp_path).as_posix() for p in paths]  # noqa: E731
    assert names(find_videos([tmp_path])) == ["a.MOV", "b.mp4", "sub/c.webm"]
    assert names(find_videos([tmp_path], stills=True)) == ["a.MOV", "b.mp4", "e.png", "sub/c.webm"]
    assert names(find_videos([tmp_path / "sub/c.webm", str(tmp_path / "**/*")])) == ["sub/c.webm", "a.MOV", "b.mp4"]
    assert names(find_videos([tmp_path / "notes.txt"])) == ["notes.txt"]
    named = find_named([tmp_path, tmp_path / "sub/c.webm"], stills=True)
    assert [name for _, name in named] == ["a.MOV", "b.mp4", "e.png", "sub/c.webm"]
    assert [name for _, name in find_named([tmp_path / "sub/c.webm"])] == ["c.webm"]
    for pattern, name in (("sub/*.webm", "c.webm"), ("s*/c.webm", "sub/c.webm"), ("**/*.webm", "sub/c.webm")):
        assert [found for _, found in find_named([tmp_path / pattern])] == [name]
    for missing in (tmp_path / "x.mp4", tmp_path / "*.avi"):
        with pytest.raises(InputError):
            find_videos([missing])
    with pytest.raises(InputError, match="no videos were named"):
        find_videos([])
