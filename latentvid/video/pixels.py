"""Between 8-bit pictures and float tensors in [-1, 1], and changes of size that can be undone or are antialiased."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.video.frame import Frame


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 RGB (0..255) to float32 in [-1, 1]; any shape."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """Map float values in [-1, 1] to uint8, rounding to nearest and clipping; uint8 passes through. Any shape.

    Raises:
        ValueError: a value is not a number.
    """
    if video.dtype == torch.uint8:
        return video
    video = video.detach().to(torch.float32)
    if torch.isnan(video).any():
        raise ValueError("the video holds values that are not numbers (NaN)")
    return ((video + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def frames_to_tensor(frames: Iterable[Frame | Tensor]) -> Tensor:
    """Stack frames (or uint8 [3 h w] tensors) of one size into float32 [t 3 h w] in [-1, 1].

    Raises:
        ValueError: there are none.
    """
    pictures = [frame.pixels if isinstance(frame, Frame) else frame for frame in frames]
    if not pictures:
        raise ValueError("no frames to stack")
    return to_float(torch.stack(pictures))


@dataclass(frozen=True, slots=True)
class Padding:
    """Pixels added on each side."""

    left: int
    right: int
    top: int
    bottom: int

    def undo(self, video: Tensor) -> Tensor:
        """Cut the padding off [.. h w]."""
        height, width = video.shape[-2:]
        return video[..., self.top : height - self.bottom, self.left : width - self.right]


def pad_to_multiple(
    video: Tensor, multiple: int, *, mode: Literal["replicate", "reflect"] = "replicate"
) -> tuple[Tensor, Padding]:
    """Grow [t c h w] at its right and bottom edges to multiples of `multiple`.

    Reflection needs edges wider than what is added; smaller pictures are padded by replication.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    height, width = video.shape[-2:]
    padding = Padding(0, -width % multiple, 0, -height % multiple)
    if not padding.right and not padding.bottom:
        return video, padding
    if mode == "reflect" and (padding.right >= width or padding.bottom >= height):
        mode = "replicate"
    sides = (padding.left, padding.right, padding.top, padding.bottom)
    if video.is_floating_point():
        return F.pad(video, sides, mode=mode), padding
    return F.pad(video.to(torch.float32), sides, mode=mode).to(video.dtype), padding


def resize(video: Tensor, height: int, width: int) -> Tensor:
    """Resize [t c h w] to height x width, bicubic with antialiasing.

    uint8 in, uint8 out. Floats are clipped to [-1, 1], which bicubic filters overshoot.
    """
    if height < 1 or width < 1:
        raise ValueError(f"size {width}x{height} must be positive")
    if tuple(video.shape[-2:]) == (height, width):
        return video
    values = video.to(torch.float32)
    values = F.interpolate(values, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    if video.dtype == torch.uint8:
        return values.round_().clamp_(0, 255).to(torch.uint8)
    return values.clamp_(-1, 1).to(video.dtype)


def center_crop(video: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle height x width out of [.. h w].

    Raises:
        ValueError: the picture is smaller than that.
    """
    have_h, have_w = video.shape[-2:]
    if height > have_h or width > have_w:
        raise ValueError(f"cannot crop {width}x{height} from {have_w}x{have_h}")
    top, left = (have_h - height) // 2, (have_w - width) // 2
    return video[..., top : top + height, left : left + width]
