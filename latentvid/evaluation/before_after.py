"""An image decoder against its finetuned successor, on held-out clips: figures, a strip and a clip to look at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentvid.core.errors import InputError
from latentvid.core.files import atomic_path
from latentvid.evaluation.reconstruction import DEFAULT_METRICS, Autoencoder, evaluate_reconstruction, reconstruct
from latentvid.evaluation.report import Report
from latentvid.metrics import METRICS
from latentvid.metrics.metric import Metric
from latentvid.video.pixels import frames_to_tensor, resize, to_uint8
from latentvid.video.reader import AS_STATED, Reading
from latentvid.video.writer import VideoWriter

BEFORE, AFTER = "frame by frame", "finetuned"
PANEL_WIDTHS = (256, 640)
"""Panels of the side-by-side clip are magnified to about the first, and reduced to the second."""
MOST_FRAMES = 150
_CHUNK, _GAP, _HEADER = 8, 4, 24


def before_and_after(
    before: Autoencoder,
    after: Autoencoder,
    clips: Sequence[Path],
    *,
    lpips_trunk: str | Path | None = None,
    device: str | torch.device = "cpu",
    max_frames: int | None = None,
    reading: Reading = AS_STATED,
    on_clip: Callable[[str, str], None] | None = None,
) -> Report:
    """Measure PSNR, SSIM, flicker and, with a trunk, LPIPS of both decoders on whole clips at full size.

    Raises:
        UsageError, CheckpointError: as `evaluate_reconstruction`.
    """
    metrics: dict[str, Metric] = {kind: METRICS.get(kind)() for kind in DEFAULT_METRICS}
    if lpips_trunk is not None:
        metrics["lpips"] = METRICS.get("lpips")(trunk=lpips_trunk, device=device)
    return evaluate_reconstruction(
        {BEFORE: before, AFTER: after},
        clips,
        metrics=metrics,
        max_frames=max_frames,
        reading=reading,
        on_clip=on_clip,
    )


def gains(report: Report) -> dict[str, float]:
    """Return what the means say: gains as differences, flicker as a ratio (below 1 is less)."""
    before, after = (report.means()[name] for name in (BEFORE, AFTER))
    found = {f"{key}_gain": after[key] - before[key] for key in ("psnr", "ssim", "lpips") if key in before}
    for key in ("flicker", "seconds_per_frame"):
        if before.get(key):
            found[f"{key}_ratio"] = after[key] / before[key]
    return found


def write_before_and_after(
    folder: Path,
    report: Report,
    clips: Sequence[Path],
    autoencoders: Mapping[str, Autoencoder],
    *,
    max_frames: int | None = None,
    reading: Reading = AS_STATED,
) -> None:
    """Write `report/`, `table.md`, and `side_by_side.png` and `.mp4` of the first clip that could be read."""
    report.write(folder / "report")
    with atomic_path(folder / "table.md") as beside:
        beside.write_text(report.table(), encoding="utf-8")
    write_strip(report, folder / "side_by_side.png")
    most = min(MOST_FRAMES, max_frames or MOST_FRAMES)
    for clip in clips:
        with suppress(InputError):
            write_side_by_side(folder / "side_by_side.mp4", clip, autoencoders, max_frames=most, reading=reading)
            return


def write_strip(report: Report, path: str | Path) -> None:
    """Write the strip of the report's first clip as PNG."""
    picture = next(iter(report.pictures.values()), None)
    if picture is not None:
        with atomic_path(path) as beside:
            picture.save(beside, format="PNG", optimize=True)


@torch.no_grad()
def write_side_by_side(
    path: str | Path,
    clip: Path,
    autoencoders: Mapping[str, Autoencoder],
    *,
    max_frames: int = MOST_FRAMES,
    reading: Reading = AS_STATED,
) -> None:
    """Write a video with the source and each reconstruction side by side, a chunk of frames in memory at a time.

    Raises:
        InputError: the clip cannot be read.
    """
    with reading.open(clip) as reader:
        fps, width, height = reader.meta.fps, reader.meta.width, reader.meta.height
    scale = max(1, PANEL_WIDTHS[0] // width) if width < PANEL_WIDTHS[1] else PANEL_WIDTHS[1] / width
    panel = (max(1, round(height * scale)), max(1, round(width * scale)))
    header = _header(["source", *autoencoders], panel[1], panel[0])
    streams = [_frames(autoencoder, clip, max_frames, reading) for autoencoder in autoencoders.values()]
    full_height = header.shape[1] + panel[0] + panel[0] % 2
    with VideoWriter(path, fps=fps, width=header.shape[2], height=full_height, overwrite=True) as writer:
        for pairs in zip(*streams, strict=True):
            pictures = [_panel(frame, panel) for frame in (pairs[0][0], *(decoded for _, decoded in pairs))]
            writer.write(_beside(pictures, header)[None])


def _frames(autoencoder: Autoencoder, clip: Path, max_frames: int, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (source, decoded) frame by frame, [3 h w]."""
    for source, decoded in reconstruct(autoencoder, _chunks(clip, max_frames, reading)):
        yield from zip(source, decoded, strict=True)


def _chunks(clip: Path, max_frames: int, reading: Reading) -> Iterator[Tensor]:
    with reading.open(clip) as reader:
        frames = reader.frames(0, max_frames)
        while pictures := list(itertools.islice(frames, _CHUNK)):
            yield frames_to_tensor(pictures)


def _panel(frame: Tensor, size: tuple[int, int]) -> Tensor:
    picture = to_uint8(frame)
    factor = size[0] // picture.shape[1]
    if factor > 1:
        return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return resize(picture[None], *size)[0]


def _beside(pictures: Sequence[Tensor], header: Tensor) -> Tensor:
    height, width = pictures[0].shape[1:]
    canvas = torch.full((3, header.shape[1] + height + height % 2, header.shape[2]), 255, dtype=torch.uint8)
    canvas[:, : header.shape[1]] = header
    for k, picture in enumerate(pictures):
        left = k * (width + _GAP)
        canvas[:, header.shape[1] : header.shape[1] + height, left : left + width] = picture
    return canvas


def _header(names: Sequence[str], width: int, height: int) -> Tensor:
    """Return the white strip with the panels' names, uint8 [3 h w] of even sides."""
    total = len(names) * width + (len(names) - 1) * _GAP
    sheet = Image.new("RGB", (total + total % 2, _HEADER), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(names):
        draw.text((k * (width + _GAP) + 4, 5), name, font=ImageFont.load_default(13), fill="#222222")
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
