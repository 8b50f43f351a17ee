"""Wan's video autoencoder (arXiv 2503.20314), streamed through its own caches, bit by bit what diffusers computes.

Causal throughout and normalised per place, one latent at a time: memory does not grow with the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

from latentvid.autoencoders.base import Factor
from latentvid.autoencoders.pretrained.streams import GroupCoder, repeat_last
from latentvid.autoencoders.video import VideoAutoencoder, refuse
from latentvid.core.time import TimeGrid
from latentvid.temporal.context import StreamState

GRID = TimeGrid(1, 4)
_REPEATS = "Rep"
"""What diffusers puts into a cache whose layer has seen a film's first frame only."""


class _Encoder(GroupCoder):
    first, then = GRID.first, GRID.step

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        network = self.autoencoder.network
        whole = group if self.is_first else repeat_last(group, self.then)
        patches = patchify(whole, network.config.patch_size or 1)
        cache = _load_cache(network.encoder, self.state)
        moments = network.quant_conv(network.encoder(patches, feat_cache=cache, feat_idx=[0]))
        _save_cache(cache, self.state)
        yield moments


class _Decoder(GroupCoder):
    first = then = 1

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        network = self.autoencoder.network
        raw = network.post_quant_conv(group)
        cache = _load_cache(network.decoder, self.state)
        video = network.decoder(raw, feat_cache=cache, feat_idx=[0], first_chunk=self.is_first)
        _save_cache(cache, self.state)
        yield unpatchify(video, network.config.patch_size or 1)


class WanAutoencoder(VideoAutoencoder):
    """Wan 2.1 and 2.2: a first frame, then four frames per latent."""

    kind = "AutoencoderKLWan"
    encodes, decodes = _Encoder, _Decoder

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        temporal = 2 ** sum(map(bool, config.temperal_downsample))
        if temporal != GRID.step:  # diffusers' own loop is made for four
            raise refuse(f"takes {temporal} frames per latent")
        patch = config.patch_size or 1
        return patch * 2 ** (len(config.dim_mult) - 1), temporal, config.z_dim

    @property
    def scaling_factor(self) -> Factor:
        return tuple(1.0 / float(std) for std in self.network.config.latents_std)

    @property
    def shift_factor(self) -> Factor:
        return tuple(float(mean) for mean in self.network.config.latents_mean)


def _load_cache(network: nn.Module, state: StreamState) -> list[Any]:
    """Return diffusers' list of caches: frames, `_REPEATS`, or None at a film's start."""
    count = sum(isinstance(module, WanCausalConv3d) for module in network.modules())
    found = [state.tensors.get(f"cache.{number}") for number in range(count)]
    return [_REPEATS if value is not None and not value.numel() else value for value in found]


def _save_cache(cache: list[Any], state: StreamState) -> None:
    for number, value in enumerate(cache):
        if value is not None:
            state.tensors[f"cache.{number}"] = torch.empty(0) if isinstance(value, str) else value.contiguous()
