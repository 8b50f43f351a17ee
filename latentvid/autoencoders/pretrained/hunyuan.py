"""HunyuanVideo's video autoencoder (arXiv 2412.03603), as overlapping windows of 16 + 1 frames, blended.

Its norms and its attention see all frames of a pass, so a film cannot be decoded in parts exactly. Windows of 17
frames every 12, the overlap faded from one to the next, are what diffusers does by default with films that are longer
than a window; here the same windows are made while the film streams by, so that the result is that of diffusers for the
padded film however it arrives. A whole pass over a longer film would give something else. Memory: a window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latentvid.autoencoders.pretrained.streams import repeat_last
from latentvid.autoencoders.protocol import Coder
from latentvid.autoencoders.video import VideoAutoencoder


class WindowCoder(Coder):
    """Codes items k * stride .. k * stride + length of a film as windows, shorter ones at its end, and blends them.

    A window begins with an item that the one before it holds as well, to start from; one that would hold nothing else
    is left out, unless it is the film. Of what comes out, the first item of each window but the first is dropped, and
    `overlap_out` items are faded from the window before: 1 + `stride_out` come out first, then `stride_out` at a time.
    """

    length: int
    stride: int
    stride_out: int
    overlap_out: int

    def push(self, part: Tensor) -> Iterator[Tensor]:
        for piece in part.split(self.stride, dim=2):
            self.state.put("film", piece.clone())
            yield from self._windows(self.length)
            self.state.num_frames_seen += piece.shape[2]

    def finish(self) -> Iterator[Tensor]:
        if "film" in self.state.tensors:
            self.state.tensors["film"] = self.filled(self.state.tensors["film"])
            yield from self._windows(1 if "before" in self.state.tensors else 0)

    @abstractmethod
    def code(self, window: Tensor) -> Tensor:
        """Send a window through the network."""

    def filled(self, film: Tensor) -> Tensor:
        """Return the end of the film, with what it lacks to a length that the network knows."""
        return film

    def _windows(self, at_least: int) -> Iterator[Tensor]:
        """Code windows as long as more than so many items are there."""
        while (film := self.state.tensors["film"]).shape[2] > at_least:
            yield self._blended(self.code(film[:, :, : self.length + 1]))
            self.state.tensors["film"] = film[:, :, self.stride :].clone()
            at_least = max(at_least, 1)

    def _blended(self, window: Tensor) -> Tensor:
        before = self.state.tensors.get("before")
        if before is None:
            self.state.tensors["before"] = window
            return window[:, :, : self.stride_out + 1]
        window = window[:, :, 1:]
        fade = min(before.shape[2], window.shape[2], self.overlap_out)
        weight = torch.arange(fade, device=window.device, dtype=window.dtype).view(-1, 1, 1) / max(fade, 1)
        mixed = before[:, :, before.shape[2] - fade :] * (1 - weight) + window[:, :, :fade] * weight
        window = torch.cat([mixed, window[:, :, fade:]], dim=2)
        self.state.tensors["before"] = window
        return window[:, :, : self.stride_out]


class _Encoder(WindowCoder):
    def __init__(self, autoencoder: Any, *args: Any) -> None:
        super().__init__(autoencoder, *args)
        factor, (self.length, self.stride) = autoencoder.grid.step, autoencoder.window
        self.stride_out = self.stride // factor
        self.overlap_out = self.length // factor - self.stride_out

    def code(self, window: Tensor) -> Tensor:
        network = self.autoencoder.network
        moments: Tensor = network.quant_conv(network.encoder(window))
        return moments

    def filled(self, film: Tensor) -> Tensor:
        return repeat_last(film, film.shape[2] + self.autoencoder.grid.padding(self.state.num_frames_seen))


class _Decoder(WindowCoder):
    def __init__(self, autoencoder: Any, *args: Any) -> None:
        super().__init__(autoencoder, *args)
        factor, (length, self.stride_out) = autoencoder.grid.step, autoencoder.window
        self.overlap_out = length - self.stride_out
        self.length, self.stride = length // factor, self.stride_out // factor

    def code(self, window: Tensor) -> Tensor:
        network = self.autoencoder.network
        video: Tensor = network.decoder(network.post_quant_conv(window))
        return video


class HunyuanAutoencoder(VideoAutoencoder):
    """A first frame, then usually four frames per latent."""

    kind = "AutoencoderKLHunyuanVideo"
    encodes, decodes = _Encoder, _Decoder

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        return config.spatial_compression_ratio, config.temporal_compression_ratio, config.latent_channels

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.pass_frames = self.window[0]

    @property
    def window(self) -> tuple[int, int]:
        """Frames of a window besides its first, and from one to the next."""
        return self.network.tile_sample_min_num_frames, self.network.tile_sample_stride_num_frames
