"""CogVideoX's video autoencoder (arXiv 2408.06072), streamed through its own caches in the groups that diffusers uses.

Its norms take their statistics over all frames of a pass, so what it gives depends on how a film is cut. diffusers
cuts after 9 frames (3 latents) and then every 8 (2 latents) where there are 8k + 1 frames, the lengths that it was
trained on; here every film is padded to such a length and cut in just this way, however it arrives. That is bit by
bit what diffusers makes of the padded film, and memory does not grow with the film. Tiles of large pictures have
statistics of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from latentvid.autoencoders.pretrained.streams import regroup, repeat_last
from latentvid.autoencoders.video import PerPass, VideoAutoencoder, refuse


class CogVideoXAutoencoder(VideoAutoencoder):
    """A first frame, then four frames per latent, latents in pairs."""

    kind = "AutoencoderKLCogVideoX"
    group = 2
    # The caches of a tile are a third of what a pass over it takes; those of two films would leave little to be saved.
    shares_norms = False

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        if config.temporal_compression_ratio != 4:
            raise refuse(f"takes {config.temporal_compression_ratio} frames per latent")
        return 2 ** (len(config.block_out_channels) - 1), 4, config.latent_channels

    def _encode(self, frames: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        step = self.temporal_factor * self.group
        cache = None
        for index, (part, is_last) in enumerate(regroup(frames, 1 + step, step, dim=2)):
            is_still = index == 0 and is_last and part.shape[2] == 1
            whole = part if is_still else repeat_last(part, step if index else 1 + step)
            moments, cache = self.network.encoder(whole, conv_cache=cache)
            yield moments if self.network.quant_conv is None else self.network.quant_conv(moments)

    def _decode(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        cache = None
        for index, (part, is_last) in enumerate(regroup(latents, 1 + self.group, self.group, dim=2)):
            is_still = index == 0 and is_last and part.shape[2] == 1
            whole = part if is_still else repeat_last(part, self.group if index else 1 + self.group)
            if self.network.post_quant_conv is not None:
                whole = self.network.post_quant_conv(whole)
            video, cache = self.network.decoder(whole, conv_cache=cache)
            yield video
