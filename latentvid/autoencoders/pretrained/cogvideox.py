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

from latentvid.autoencoders.pretrained.streams import GroupCoder, repeat_last
from latentvid.autoencoders.video import VideoAutoencoder, refuse
from latentvid.core.time import TimeGrid
from latentvid.temporal.context import StreamState

GRID = TimeGrid(1, 4)
GROUP = 2
"""Latents after the first come in pairs."""


class _Encoder(GroupCoder):
    first, then = GRID.frames(1 + GROUP), GRID.step * GROUP

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        network = self.autoencoder.network
        whole = _filled(self, group, is_last=is_last)
        moments, cache = network.encoder(whole, conv_cache=_load_cache(self.state))
        _save_cache(cache, self.state)
        yield moments if network.quant_conv is None else network.quant_conv(moments)


class _Decoder(GroupCoder):
    first, then = 1 + GROUP, GROUP

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        network = self.autoencoder.network
        whole = _filled(self, group, is_last=is_last)
        if network.post_quant_conv is not None:
            whole = network.post_quant_conv(whole)
        video, cache = network.decoder(whole, conv_cache=_load_cache(self.state))
        _save_cache(cache, self.state)
        yield video


class CogVideoXAutoencoder(VideoAutoencoder):
    """A first frame, then four frames per latent, latents in pairs."""

    kind = "AutoencoderKLCogVideoX"
    group = GROUP
    encodes, decodes = _Encoder, _Decoder
    # The caches of a tile are a third of what a pass over it takes; those of two films would leave little to be saved.
    shares_norms = False

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        if config.temporal_compression_ratio != GRID.step:
            raise refuse(f"takes {config.temporal_compression_ratio} frames per latent")
        return 2 ** (len(config.block_out_channels) - 1), GRID.step, config.latent_channels


def _filled(coder: GroupCoder, group: Tensor, *, is_last: bool) -> Tensor:
    """Grow a group to its full length; a film of one frame, or of one latent, is a still and stays one."""
    is_still = coder.is_first and is_last and group.shape[2] == 1
    return group if is_still else repeat_last(group, coder.first if coder.is_first else coder.then)


_CACHE = "cache/"


def _load_cache(state: StreamState) -> dict[str, Any] | None:
    """Return diffusers' tree of caches, None at a film's start."""
    tree: dict[str, Any] = {}
    for name, value in state.tensors.items():
        if name.startswith(_CACHE):
            *branches, leaf = name.removeprefix(_CACHE).split("/")
            at = tree
            for branch in branches:
                at = at.setdefault(branch, {})
            at[leaf] = value
    return tree or None


def _save_cache(tree: dict[str, Any], state: StreamState, prefix: str = _CACHE) -> None:
    for name, value in tree.items():
        if isinstance(value, Tensor):
            state.tensors[prefix + name] = value.contiguous()
        elif value is not None:  # layers that see one frame have none
            _save_cache(value, state, f"{prefix}{name}/")
