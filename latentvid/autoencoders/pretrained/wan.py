"""Wan's video autoencoder (arXiv 2503.20314), streamed through its own caches, bit by bit what diffusers computes.

Causal throughout and normalised per place, one latent at a time: memory does not grow with the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

from latentvid.autoencoders.base import Factor
from latentvid.autoencoders.pretrained.streams import regroup, repeat_last
from latentvid.autoencoders.video import PerPass, VideoAutoencoder, refuse


class WanAutoencoder(VideoAutoencoder):
    """Wan 2.1 and 2.2: a first frame, then four frames per latent."""

    kind = "AutoencoderKLWan"

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        temporal = 2 ** sum(map(bool, config.temperal_downsample))
        if temporal != 4:  # diffusers' own loop is made for four
            raise refuse(f"takes {temporal} frames per latent")
        patch = config.patch_size or 1
        return patch * 2 ** (len(config.dim_mult) - 1), temporal, config.z_dim

    @property
    def scaling_factor(self) -> Factor:
        return tuple(1.0 / float(std) for std in self.network.config.latents_std)

    @property
    def shift_factor(self) -> Factor:
        return tuple(float(mean) for mean in self.network.config.latents_mean)

    def _encode(self, frames: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        cache = _empty_cache(self.network.encoder)
        for index, (part, _) in enumerate(regroup(frames, 1, self.temporal_factor, dim=2)):
            whole = repeat_last(part, self.temporal_factor) if index else part
            patches = patchify(whole, self.network.config.patch_size or 1)
            yield self.network.quant_conv(self.network.encoder(patches, feat_cache=cache, feat_idx=[0]))

    def _decode(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        cache = _empty_cache(self.network.decoder)
        for index, (part, _) in enumerate(regroup(latents, 1, 1, dim=2)):
            raw = self.network.post_quant_conv(part)
            video = self.network.decoder(raw, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
            yield unpatchify(video, self.network.config.patch_size or 1)


def _empty_cache(network: nn.Module) -> list[Any]:
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())
