"""Clips that tests make for themselves, and what they say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter

SATURATED = torch.tensor(
    [
        [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255],
        [255, 0, 255], [255, 255, 255], [0, 0, 0], [200, 40, 90], [18, 130, 240],
    ],
    dtype=torch.uint8,
)  # fmt: skip


def patches(num_frames: int, height: int, width: int, *, size: int = 16, seed: int = 0) -> Tensor:
    """Saturated flat squares that differ from frame to frame, uint8 [t 3 h w]."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, len(SATURATED), (num_frames, -(-height // size), -(-width // size)), generator=generator)
    video = SATURATED[grid].permute(0, 3, 1, 2).repeat_interleave(size, 2).repeat_interleave(size, 3)
    return video[:, :, :height, :width].contiguous()


def numbered(num_frames: int, height: int = 64, width: int = 96) -> Tensor:
    """Frames that say their number in 16 black or white squares, on a moving ground, uint8 [t 3 h w]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = []
    for n in range(num_frames):
        ground = torch.stack([(x + 3 * n) % 128 + 60, (y + 2 * n) % 128 + 60, (x + y) % 128 + 60])
        for bit in range(16):
            top, left = 8 + bit // 8 * 16, bit % 8 * 12
            ground[:, top : top + 12, left : left + 12] = 255 if n >> bit & 1 else 0
        frames.append(ground.to(torch.uint8))
    return torch.stack(frames)


def number_of(pixels: Tensor) -> int:
    """Read the number back from a decoded frame [3 h w]."""
    centres = [pixels[:, 8 + b // 8 * 16 + 6, b % 8 * 12 + 6].float().mean() for b in range(16)]
    return sum(1 << bit for bit, value in enumerate(centres) if value > 127)


def write(path: Path, video: Tensor, fps: Fraction | int = 25, **options: object) -> Path:
    """Write [t 3 h w] with the package's own writer."""
    height, width = video.shape[2:]
    with VideoWriter(path, fps=Fraction(fps), width=width, height=height, **options) as writer:  # type: ignore[arg-type]
        writer.write(video)
    return path


def read(path: Path, **options: object) -> Tensor:
    """Read all frames, uint8 [t 3 h w]."""
    return torch.stack([frame.pixels for frame in open_video(path, **options).frames()])  # type: ignore[arg-type]
