"""Footage and a base autoencoder, small enough to finetune in a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from latentvid.video.writer import VideoWriter


def write_footage(folder: Path, count: int, *, frames: int = 6, size: tuple[int, int] = (32, 48)) -> list[Path]:
    """Write clips of coloured waves that drift, each another."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    paths = []
    for k in range(count):
        t = torch.arange(frames)[:, None, None]
        waves = [torch.sin((x + (k + 1) * t) / (3.0 + c) + y / (5.0 + k)) for c in range(3)]
        paths.append(folder / f"clip{k}.mp4")
        with VideoWriter(paths[-1], fps=Fraction(10), width=width, height=height) as writer:
            writer.write(torch.stack(waves, dim=1).clamp(-1, 1) * 0.8)
    return paths


def write_base(folder: Path) -> Path:
    """Write an `AutoencoderKL` of a few thousand weights with a card that states a licence."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=3,
            mid_block_add_attention=False,
        ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA base.\n")
    return folder
