"""Clips that tests make for themselves, and what they say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
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


def native(
    path: Path, codec: str, pix_fmt: str, *, num_frames: int = 8, width: int = 48, height: int = 32, fps: int = 12,
    sample_aspect_ratio: Fraction | None = None, tags: tuple[int, int, int, int] | None = None, rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write a clip in a pixel format of its own, with PyAV alone.

    Args:
        tags: matrix, range, transfer and primaries as numbers of H.273.
        rotation: degrees that the display matrix turns it by, anticlockwise.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        if sample_aspect_ratio:
            context.sample_aspect_ratio = sample_aspect_ratio
        if tags:
            context.colorspace, context.color_range, context.color_trc, context.color_primaries = tags
        if rotation:
            stream.set_display_rotation(rotation)
        y, x = np.mgrid[:height, :width]
        for n in range(num_frames):
            rgb = np.stack([(x + 3 * n) * 5 % 256, (y + n) * 7 % 256, (x + y + 9 * n) * 3 % 256], -1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = n, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def remuxed(path: Path, out: Path, *, skip: int = 0) -> Path:
    """Copy a clip's packets but the first `skip` into another kind of file."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for n, packet in enumerate(source.demux(video=0)):
            if packet.size and n >= skip:
                packet.stream = stream
                target.mux_one(packet)
    return out


def planes(path: Path, pix_fmt: str | None = None) -> list[list[np.ndarray]]:
    """Decode all frames as they are stored, each a list of its planes' bytes."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.reformat(format=pix_fmt) if pix_fmt else frame
            width = 2 if max(c.bits for c in picture.format.components) > 8 else 1
            found.append(
                [
                    np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width * width].copy()
                    for p in picture.planes
                ]
            )
    return found


def same(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> bool:
    """Whether the first list's frames are those that the other begins with."""
    return len(one) <= len(other) and all(
        len(a) == len(b) and all(map(np.array_equal, a, b)) for a, b in zip(one, other, strict=False)
    )
