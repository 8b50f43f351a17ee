"""HunyuanVideo's video autoencoder (arXiv 2412.03603), as overlapping windows of 16 + 1 frames, blended.

Its norms and its attention see all frames of a pass, so a film cannot be decoded in parts exactly. Windows of 17
frames every 12, the overlap faded from one to the next, are what diffusers does by default with films that are longer
than a window; here the same windows are made while the film streams by, so that the result is that of diffusers for the
padded film however it arrives. A whole pass over a longer film would give something else. Memory: a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latentvid.autoencoders.pretrained.streams import regroup, repeat_last
from latentvid.autoencoders.video import PerPass, VideoAutoencoder


class HunyuanAutoencoder(VideoAutoencoder):
    """A first frame, then usually four frames per latent."""

    kind = "AutoencoderKLHunyuanVideo"

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        return config.spatial_compression_ratio, config.temporal_compression_ratio, config.latent_channels

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.pass_frames = self._window[0]

    def _encode(self, frames: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        factor, (length, stride) = self.temporal_factor, self._window
        whole = self._padded(frames)
        encoded = (self.network.quant_conv(self.network.encoder(w)) for w in windows(whole, length, stride))
        yield from blended(encoded, stride // factor, length // factor - stride // factor)

    def _decode(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        factor, (length, stride) = self.temporal_factor, self._window
        cut = windows(latents, length // factor, stride // factor)
        decoded = (self.network.decoder(self.network.post_quant_conv(window)) for window in cut)
        yield from blended(decoded, stride, length - stride)

    @property
    def _window(self) -> tuple[int, int]:
        """Frames of a window besides its first, and from one to the next."""
        return self.network.tile_sample_min_num_frames, self.network.tile_sample_stride_num_frames

    def _padded(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        for index, (part, _) in enumerate(regroup(frames, 1, self.temporal_factor, dim=2)):
            yield repeat_last(part, self.temporal_factor) if index else part


def windows(parts: Iterator[Tensor], length: int, stride: int) -> Iterator[Tensor]:
    """Yield frames k * stride .. k * stride + length of a film [b c t h w], shorter ones at its end.

    A window begins with a frame that the one before it holds as well, to start from; one that would hold nothing else
    is left out, unless it is the film.
    """
    film: Tensor | None = None
    is_first = True
    for part, is_last in regroup(parts, stride, stride, dim=2):
        film = part if film is None else torch.cat([film, part], dim=2)
        while film.shape[2] > (length if not is_last else 0 if is_first else 1):
            yield film[:, :, : length + 1]
            film, is_first = film[:, :, stride:], False


def blended(decoded: Iterator[Tensor], stride: int, overlap: int) -> Iterator[Tensor]:
    """Join windows [b c t h w]: the first frame of each but the first is dropped, `overlap` frames are faded.

    Yields:
        1 + stride frames, then `stride` at a time.
    """
    before: Tensor | None = None
    for window in decoded:
        if before is None:
            yield window[:, :, : stride + 1]
            before = window
            continue
        window = window[:, :, 1:]
        fade = min(before.shape[2], window.shape[2], overlap)
        weight = torch.arange(fade, device=window.device, dtype=window.dtype).view(-1, 1, 1) / max(fade, 1)
        mixed = before[:, :, before.shape[2] - fade :] * (1 - weight) + window[:, :, :fade] * weight
        window = torch.cat([mixed, window[:, :, fade:]], dim=2)
        yield window[:, :, :stride]
        before = window
