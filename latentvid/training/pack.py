"""Latent files into shards for training: whole films or windows of equal length, with their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import UsageError
from latentvid.core.files import safe_name
from latentvid.data.footage import caption_of
from latentvid.data.latent_shards import ShardWriter


def pack_files(files: Iterable[tuple[str, Path, Path]], writer: ShardWriter, *, num_frames: int = 0) -> None:
    """Add latent files to shards.

    Args:
        files: a name that no other file of the shards has, the latent file, and the clip that it was made of, whose
            caption is taken from the `.txt` file beside it.
        num_frames: length of the windows that films are cut into, what is left at the end is dropped; 0 keeps films
            whole.

    Raises:
        CheckpointError: a latent file is damaged.
        UsageError: windows were asked for of latents that hold several frames each.
    """
    for name, path, clip in files:
        file = LatentFile(path)
        file.verify()
        if num_frames and file.meta.temporal_factor > 1:
            raise UsageError(f"{path}: latents of several frames each cannot be cut into windows; pack them whole.")
        caption = caption_of(clip)
        for start, stop in _windows(file.num_latents, num_frames):
            # Safe names of different files may meet; their hashes do not.
            key = f"{safe_name(name)[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}-{start:06d}"
            dtype = torch.float16 if file.precision == "F16" else torch.float32
            writer.add(
                key.replace(".", "-"), file.read(start, stop).to(dtype), _about(file, name, start, stop), caption
            )


def _windows(num_latents: int, length: int) -> Iterator[tuple[int, int]]:
    if not length:
        yield 0, num_latents
        return
    for start in range(0, num_latents - length + 1, length):
        yield start, start + length


def _about(file: LatentFile, name: str, start: int, stop: int) -> dict[str, Any]:
    meta = file.meta
    return {
        "name": name,
        "source_sha256": meta.source_sha256,
        "first_latent": start,
        "num_latents": stop - start,
        "fps": f"{meta.fps.numerator}/{meta.fps.denominator}",
        "height": meta.height,
        "width": meta.width,
        "vae": meta.vae,
        "latent_space": meta.latent_space,
        "spatial_factor": meta.spatial_factor,
        "temporal_factor": meta.temporal_factor,
    }
