"""Latent files into shards for training, whole or as windows of equal length with their captions, and out again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.files import safe_name
from latentvid.data.captions import caption_of
from latentvid.data.latent_shards import LatentShards, ShardWriter
from latentvid.data.text_files import warn_of_odd_bytes


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
    odd: dict[Path, int] = {}
    for name, path, clip in files:
        file = LatentFile(path)
        file.verify()
        if num_frames and file.meta.temporal_factor > 1:
            raise UsageError(f"{path}: latents of several frames each cannot be cut into windows; pack them whole.")
        caption = caption_of(clip, odd)
        for start, stop in _windows(file.num_latents, num_frames):
            # Safe names of different files may meet; their hashes do not.
            key = f"{safe_name(name)[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}-{start:06d}"
            dtype = torch.float16 if file.precision == "F16" else torch.float32
            writer.add(
                key.replace(".", "-"), file.read(start, stop).to(dtype), _about(file, name, start, stop), caption
            )
    warn_of_odd_bytes(odd)


def open_packed(places: Sequence[str | Path], latent_space: str, *, num_frames: int) -> LatentShards:
    """Open shards to train on, once all of them are known to fit.

    Args:
        places: tar files, or folders of them.
        latent_space: that of the autoencoder that is trained with; see `BaseAutoencoder.latent_space`.
        num_frames: of a training window.

    Raises:
        CheckpointError: a shard is missing or damaged, or another autoencoder's.
        UsageError: a sample is shorter than the window, or the samples differ in size.
    """
    shards = LatentShards(*places)
    where = ", ".join(map(str, places))
    if not len(shards):
        raise CheckpointError(f"{where}: the shards are empty; encode and pack again.")
    sizes = set()
    for number, key in enumerate(shards.keys):
        about = shards.about(number)
        if about.get("latent_space") != latent_space:
            raise CheckpointError(
                f"{where}: {key} was encoded with {about.get('vae') or 'another autoencoder'}, whose latent space is"
                " not that of the recipe's vae; name that one there, or encode again."
            )
        if int(about.get("num_latents", 0)) < num_frames:
            raise UsageError(
                f"{where}: {key} has {about.get('num_latents', 0)} latents, and windows of {num_frames} are trained"
                f" on; pack with --pack-frames {num_frames} or more."
            )
        sizes.add((about.get("width"), about.get("height")))
    if len(sizes) > 1:
        seen = " and ".join(f"{width}x{height}" for width, height in sorted(sizes, key=str)[:2])
        raise UsageError(f"{where}: clips of {seen} do not stack; encode them in one size.")
    return shards


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
