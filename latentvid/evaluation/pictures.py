"""Strips to look at: a clip's source, its reconstructions, and what they got wrong, amplified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

AMPLIFICATION = 4

_GAP, _HEADER = 4, 22


def comparison_strip(
    source: Sequence[Tensor], reconstructions: Mapping[str, Sequence[Tensor]], indices: Sequence[int]
) -> Image.Image:
    """Return a picture with a row for the source, one per reconstruction, and one per amplified difference.

    Args:
        source: frames, uint8 [3 h w], one per column.
        reconstructions: by name, as many frames each.
        indices: the frames' numbers in the clip, for the column heads.
    """
    rows = [("source", list(source))]
    rows += [(name, list(frames)) for name, frames in reconstructions.items()]
    for name, frames in reconstructions.items():
        wrong = [amplified_difference(x, y) for x, y in zip(frames, source, strict=True)]
        rows.append((f"{name}: difference x{AMPLIFICATION}", wrong))
    width, height = _cell_size(source[0])
    sheet = Image.new(
        "RGB", (len(source) * (width + _GAP) + _GAP, _HEADER + len(rows) * (height + _HEADER + _GAP)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, index in enumerate(indices):
        _write(draw, (_GAP + column * (width + _GAP), 4), f"frame {index}", "#666666")
    for i, (label, frames) in enumerate(rows):
        top = _HEADER + i * (height + _HEADER + _GAP)
        _write(draw, (_GAP, top + 3), label, "#222222")
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
            sampling = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((width, height), sampling), (_GAP + column * (width + _GAP), top + _HEADER))
    return sheet


def amplified_difference(frame: Tensor, source: Tensor) -> Tensor:
    """Return mid-grey plus `AMPLIFICATION` times (frame - source), clamped; uint8 [3 h w]."""
    difference = frame.to(torch.int32) - source.to(torch.int32)
    return (128 + AMPLIFICATION * difference).clamp(0, 255).to(torch.uint8)


def picture_indices(num_frames: int, count: int) -> list[int]:
    """Return `count` frame numbers spread over a clip, its first and last included.

    >>> picture_indices(32, 4)
    [0, 10, 21, 31]
    """
    count = min(count, num_frames)
    if count < 2:
        return list(range(count))
    return [round(i * (num_frames - 1) / (count - 1)) for i in range(count)]


def _cell_size(frame: Tensor) -> tuple[int, int]:
    """Small frames are magnified by a whole factor, large ones reduced to 320 pixels of width."""
    height, width = frame.shape[-2:]
    if width >= 320:
        return 320, max(1, round(height * 320 / width))
    factor = max(1, 256 // width)
    return width * factor, height * factor


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, fill: str) -> None:
    draw.text(at, text, font=ImageFont.load_default(13), fill=fill)
