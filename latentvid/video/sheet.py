"""Contact sheets: a clip's frames side by side in one picture, numbered, to look at without a player."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentvid.core.files import atomic_path
from latentvid.video.pixels import to_uint8

_GAP = 2
_MAX_PIXELS = 100_000_000


def contact_sheet(
    frames: Tensor, columns: int = 8, scale: float = 1.0, *, labels: Sequence[object] | None = None
) -> Image.Image:
    """Lay frames [t 3 h w] (uint8, or float in [-1, 1]) out in rows of `columns`.

    `scale` sizes each frame (2.0 doubles it; whole factors are sharp). `labels` default to the frame numbers.

    Raises:
        ValueError: there are no frames, or the sheet would exceed 100 million pixels.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(f"a contact sheet needs frames [t 3 h w], not {list(frames.shape)}")
    if columns < 1 or scale <= 0:
        raise ValueError(f"columns={columns} and scale={scale} must be positive")
    columns = min(columns, len(frames))
    width, height = max(1, round(frames.shape[3] * scale)), max(1, round(frames.shape[2] * scale))
    rows = -(-len(frames) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    if size[0] * size[1] > _MAX_PIXELS:
        raise ValueError(f"a contact sheet of {size[0]}x{size[1]} is too large; take fewer frames or a smaller scale")
    sheet = Image.new("RGB", size, (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=max(9, min(16, height // 8)))
    for i, frame in enumerate(frames):
        corner = (_GAP + i % columns * (width + _GAP), _GAP + i // columns * (height + _GAP))
        picture = Image.fromarray(to_uint8(frame).permute(1, 2, 0).cpu().numpy())
        if picture.size != (width, height):
            sampling = Image.Resampling.NEAREST if scale == round(scale) else Image.Resampling.LANCZOS
            picture = picture.resize((width, height), sampling)
        sheet.paste(picture, corner)
        text = str(labels[i] if labels else i)
        draw.text((corner[0] + 2, corner[1]), text, font=font, fill="white", stroke_width=1, stroke_fill="black")
    return sheet


def save_contact_sheet(
    path: str | Path,
    frames: Tensor,
    columns: int = 8,
    scale: float = 1.0,
    *,
    labels: Sequence[object] | None = None,
    overwrite: bool = True,
) -> None:
    """Write `contact_sheet(...)` as PNG, whole or not at all."""
    sheet = contact_sheet(frames, columns, scale, labels=labels)
    with atomic_path(path, overwrite=overwrite) as beside:
        sheet.save(beside, format="PNG")
