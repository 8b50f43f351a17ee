"""Latents of training clips, computed once by the frozen encoder and kept on disk as safetensors shards.

Shard k holds clips k * SHARD .. as `latents` [n c t h w] in float16, with the captions in its metadata and, where
they are wanted, the pixels as `video` [n t 3 h w] in uint8. A shard that exists is not computed again, so an
interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentvid.core.errors import CheckpointError
from latentvid.core.files import atomic_path, resource_errors
from latentvid.training.sources import ClipSource

SHARD = 128

Encode = Callable[[Tensor], Tensor]
"""[b 3 t h w] in [-1, 1] -> latents [b c t h w]."""
OnPrepared = Callable[[int, int], None]
"""(done, total) of the clips being prepared."""


def cache_name(*parts: object) -> str:
    """Return a folder name that changes with anything the latents depend on (source, seed, encoder)."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def build_cache(
    source: ClipSource,
    encode: Encode,
    folder: str | Path,
    *,
    keep_pixels: bool = False,
    on_clip: OnPrepared | None = None,
) -> LatentCache:
    """Encode every clip of `source` into `folder` and open the result.

    Args:
        source: the clips.
        encode: the frozen encoder.
        folder: made where missing; whole shards in it are kept.
        keep_pixels: store the clips too, for training a decoder.
        on_clip: called with (done, total), for a progress bar.
    """
    folder = Path(folder)
    with resource_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(source), SHARD):
        path = _shard(folder, start // SHARD)
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link; the cache holds files of its own only. Remove the link.")
        stop = min(start + SHARD, len(source))
        if not path.exists():
            _write_shard(path, source, encode, range(start, stop), keep_pixels=keep_pixels)
        if on_clip:
            on_clip(stop, len(source))
    return LatentCache(folder)


def _write_shard(path: Path, source: ClipSource, encode: Encode, clips: range, *, keep_pixels: bool) -> None:
    latents, videos, captions = [], [], []
    for index in clips:
        video, texts = source.clip(index)
        with torch.no_grad():
            latents.append(encode(as_network_input(video[None]))[0].to(torch.float16).cpu())
        captions.append(texts)
        if keep_pixels:
            videos.append(video)
    tensors = {"latents": torch.stack(latents).contiguous()}
    if keep_pixels:
        tensors["video"] = torch.stack(videos).contiguous()
    with atomic_path(path) as beside:
        save_file(tensors, beside, {"captions": json.dumps(captions)})


def as_network_input(video: Tensor) -> Tensor:
    """Turn uint8 [b t 3 h w] into floats [b 3 t h w] in [-1, 1]."""
    return rearrange(video.float().div(127.5).sub(1), "b t c h w -> b c t h w")


class LatentCache:
    """Clips of latents by number, held in memory.

    Raises:
        CheckpointError: the folder holds no shards, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("shard-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no latent shards; prepare the data first.")
        self._latents: list[Tensor] = []
        self._videos: list[Tensor] = []
        self.captions: list[list[str]] = []
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    self._latents.append(file.get_tensor("latents"))
                    if "video" in file.keys():  # noqa: SIM118 - it is no mapping
                        self._videos.append(file.get_tensor("video"))
                    self.captions += json.loads(file.metadata()["captions"])
            except Exception as error:  # safetensors raises its own bare types
                raise CheckpointError(f"{path} is damaged ({error}); delete it and prepare the data again.") from error
            self._check_shard(path)

    def _check_shard(self, path: Path) -> None:
        """Refuse a shard that does not continue the ones before: numbers would mean other clips."""
        number = len(self._latents) - 1
        whole = all(len(latents) == SHARD for latents in self._latents[:-1])
        counted = sum(len(latents) for latents in self._latents) == len(self.captions)
        if path != _shard(self.folder, number) or not whole or not counted:
            raise CheckpointError(f"{self.folder} lacks clips before {path.name}; prepare the data again.")

    def __len__(self) -> int:
        return len(self.captions)

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w]."""
        return self._latents[index // SHARD][index % SHARD].float()

    def video(self, index: int) -> Tensor:
        """Return uint8 [t 3 h w]; only where the cache was built with its pixels."""
        return self._videos[index // SHARD][index % SHARD]


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"
