"""Stable Video Diffusion's temporal decoder (arXiv 2311.15127): the latents of an image autoencoder, decoded in time.

Its temporal convolutions look one frame ahead and its temporal norms take their statistics over all frames of a pass,
so that diffusers gives another result for every way to cut a film. Two things are done about that:

- the norms take their statistics per frame, which is what makes an exact answer possible at all. This is a change: for
  one frame nothing differs; on 14 frames of a sky (random weights) the mean difference from diffusers' whole pass was
  0.011 in [-1, 1], where diffusers in two chunks of 7 differed from it by 0.031;
- the convolutions look ahead through delay lines (`streams.py`), so that a film in parts of any length is what it is in
  one pass, at the cost of one pass, with 2 frames per convolution and residual held.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.pretrained.streams import Layer, LayerCoder, Names, StretchCoder, convolve, names_of
from latentvid.autoencoders.protocol import Coder, PerPass
from latentvid.autoencoders.video import VideoAutoencoder
from latentvid.temporal.context import StreamState

STRETCH = 2
"""Frames that a tile gives at a time, over those that it looks at before and after them."""


class _Encoder(Coder):
    def push(self, part: Tensor) -> Iterator[Tensor]:
        network = self.autoencoder.network
        for frames in _flat(part).split(self.frames_per_pass(*part.shape[-2:])):
            yield _film(network.quant_conv(network.encoder(frames)))


class _Decoder(LayerCoder):
    def layers(self) -> list[Layer]:
        return decoder_layers(self.autoencoder.network.decoder)


class _TileDecoder(StretchCoder):
    """Decodes anew every stretch of a film, with the frames around it as far as the layers look.

    The delay lines are most of what decoding takes; like this no tile has any while others have their turn.
    """

    def __init__(self, autoencoder: SvdAutoencoder, state: StreamState, per_pass: PerPass) -> None:
        super().__init__(autoencoder, state, per_pass)
        self.reach = autoencoder.num_temporal_convs
        self.then = STRETCH * self.reach
        self.first = self.then + self.reach

    def stretch(self, film: Tensor) -> Tensor:
        decoder = _Decoder(self.autoencoder, StreamState(), self.frames_per_pass)
        return torch.cat([*decoder.run([film])], dim=2)


class SvdAutoencoder(VideoAutoencoder):
    """One frame per latent, in Stable Diffusion's latent space."""

    kind = "AutoencoderKLTemporalDecoder"
    looks_ahead = True
    encodes, decodes, decodes_tiles = _Encoder, _Decoder, _TileDecoder

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        return 2 ** (len(config.block_out_channels) - 1), 1, config.latent_channels

    @cached_property
    def _decode_tile_cost(self) -> Cost:
        """A pass as ever, and the frames of a stretch and around it: as parts, joined, and for both films of a tile."""
        pass_cost = self._decode_cost
        frames = 3 * self.dtype.itemsize * (STRETCH + 2) * self.num_temporal_convs
        return Cost(pass_cost.frame_bytes + pass_cost.state_bytes + 2 * frames, 2 * frames)


def decoder_layers(decoder: Any) -> list[Layer]:
    """Return diffusers' temporal decoder as layers over streams."""
    names = names_of(decoder)
    first, *others = decoder.mid_block.resnets
    layers = [_per_frame(decoder.conv_in), _block(first, names)]
    for attention, block in zip(decoder.mid_block.attentions, others, strict=False):
        layers += [_per_frame(attention), _block(block, names)]
    for stage in decoder.up_blocks:
        layers += [_block(block, names) for block in stage.resnets]
        layers += [_per_frame(upsampler) for upsampler in stage.upsamplers or ()]
    head = nn.Sequential(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    return [*layers, _per_frame(head), lambda x, stream: _convolve(decoder.time_conv_out, x, names, stream)]


def _per_frame(layer: nn.Module) -> Layer:
    return lambda x, _: _film(layer(_flat(x)))


def _block(block: Any, names: Names) -> Layer:
    """Return a spatial and a temporal residual block."""

    def layer(x: Tensor, stream: StreamState) -> Tensor:
        spatial = _film(block.spatial_res_block(_flat(x), None))
        stream.put(names[block], spatial)
        branch, temporal = spatial, block.temporal_res_block
        for norm, conv in ((temporal.norm1, temporal.conv1), (temporal.norm2, temporal.conv2)):
            # Per frame: `norm` itself would take its statistics over all frames of the pass.
            branch = _convolve(conv, _film(F.silu(norm(_flat(branch)))), names, stream)
        spatial = stream.take(names[block], branch.shape[2])
        is_image = torch.zeros(1, branch.shape[2], device=x.device, dtype=x.dtype)
        mixed: Tensor = block.time_mixer(x_spatial=spatial, x_temporal=spatial + branch, image_only_indicator=is_image)
        return mixed

    return layer


def _convolve(conv: nn.Conv3d, x: Tensor, names: Names, stream: StreamState) -> Tensor:
    return convolve(x, conv, names[conv], stream, causal=False, repeat_edges=False)


def _flat(film: Tensor) -> Tensor:
    """[1 c t h w] -> [t c h w]."""
    return film[0].transpose(0, 1)


def _film(frames: Tensor) -> Tensor:
    return frames.transpose(0, 1)[None]
