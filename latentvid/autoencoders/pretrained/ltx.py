"""LTX-Video's video autoencoder (arXiv 2501.00103), streamed layer by layer.

Its norms work per place and frame, so every film has one answer, that of diffusers in one pass. The encoder looks back
only; the decoder looks ahead and runs through delay lines (`streams.py`): a film in parts of any length is what it is
in one pass, up to rounding, at the cost of one pass. Memory: a part, and 2 frames per convolution and residual.

Decoders that take a timestep get 0, "no noise to remove", and those that add noise get the same for every frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_ltx as ltx
from torch import Tensor, nn

from latentvid.autoencoders.base import Factor
from latentvid.autoencoders.pretrained.streams import (
    GroupCoder,
    Layer,
    LayerCoder,
    Names,
    convolve,
    names_of,
    repeat_last,
    run,
)
from latentvid.autoencoders.protocol import PerPass
from latentvid.autoencoders.video import VideoAutoencoder, refuse
from latentvid.core.rng import Rng
from latentvid.temporal.context import StreamState


class _Encoder(GroupCoder):
    """Its layers look back only, so that none has to know where the film ends."""

    def __init__(self, autoencoder: LtxAutoencoder, state: StreamState, per_pass: PerPass) -> None:
        super().__init__(autoencoder, state, per_pass)
        self.first, self.then = autoencoder.grid.first, autoencoder.grid.step
        self._layers = encoder_layers(autoencoder.network.encoder)

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        whole = group if self.is_first else repeat_last(group, self.then)
        yield from run(self._layers, whole, self.state, self.then, is_last=False)


class _Decoder(LayerCoder):
    def layers(self) -> list[Layer]:
        return decoder_layers(self.autoencoder.network.decoder)


class LtxAutoencoder(VideoAutoencoder):
    """A first frame, then usually eight frames per latent."""

    kind = "AutoencoderKLLTXVideo"
    looks_ahead = True
    encodes, decodes = _Encoder, _Decoder

    def _geometry(self, config: Any) -> tuple[int, int, int]:
        if not config.encoder_causal:
            raise refuse("has an encoder that looks ahead")
        if config.patch_size_t != 1:
            raise refuse("takes frames in patches")
        network = self.network
        if 2 ** sum(config.decoder_spatio_temporal_scaling) != network.temporal_compression_ratio:
            raise refuse("puts out another number of frames than it takes in")
        return network.spatial_compression_ratio, network.temporal_compression_ratio, config.latent_channels

    @property
    def scaling_factor(self) -> Factor:
        scale = float(self.network.config.scaling_factor)
        return tuple(scale / std for std in self.network.latents_std.float().tolist())

    @property
    def shift_factor(self) -> Factor:
        return tuple(self.network.latents_mean.float().tolist())


def encoder_layers(encoder: Any) -> list[Layer]:
    """Return diffusers' encoder as layers over streams."""
    names, patch = names_of(encoder), encoder.patch_size
    layers: list[Layer] = [lambda x, _: _patched(x, patch)]
    layers.append(_convolution(encoder.conv_in, names))
    for stage in encoder.down_blocks:
        layers += [_resnet(block, names) for block in stage.resnets]
        for down in stage.downsamplers or ():
            layers.append(
                _downsampler(down, names) if isinstance(down, ltx.LTXVideoDownsampler3d) else _convolution(down, names)
            )
        if getattr(stage, "conv_out", None) is not None:
            layers.append(_resnet(stage.conv_out, names))
    layers += [_resnet(block, names) for block in encoder.mid_block.resnets]
    return [*layers, _head(encoder), _convolution(encoder.conv_out, names), _with_variances]


def decoder_layers(decoder: Any) -> list[Layer]:
    """Return diffusers' decoder as layers over streams."""
    names = names_of(decoder)
    layers = [_convolution(decoder.conv_in, names)]
    timestep = _timestep(decoder)
    embedded = _embedded(decoder.mid_block, timestep)
    layers += [_resnet(block, names, f"mid/{k}", embedded) for k, block in enumerate(decoder.mid_block.resnets)]
    for number, stage in enumerate(decoder.up_blocks):
        if stage.conv_in is not None:
            layers.append(_resnet(stage.conv_in, names, f"{number}/in", timestep))
        embedded = _embedded(stage, timestep)
        layers += [_upsampler(upsampler, names) for upsampler in stage.upsamplers or ()]
        layers += [_resnet(block, names, f"{number}/{k}", embedded) for k, block in enumerate(stage.resnets)]
    patch = decoder.patch_size
    return [
        *layers,
        _head(decoder, _embedded(decoder, timestep)),
        _convolution(decoder.conv_out, names),
        lambda x, _: _unpatched(x, patch),
    ]


def _timestep(decoder: Any) -> Tensor | None:
    scale = decoder.timestep_scale_multiplier
    return None if scale is None else torch.zeros(1, device=scale.device, dtype=scale.dtype) * scale


def _embedded(stage: Any, timestep: Tensor | None) -> Tensor | None:
    """Return what a stage makes of the timestep, [1 n 1 1 1]."""
    if stage.time_embedder is None or timestep is None:
        return timestep
    found: Tensor = stage.time_embedder(
        timestep=timestep.flatten(),
        resolution=None,
        aspect_ratio=None,
        batch_size=1,
        hidden_dtype=next(stage.parameters()).dtype,
    )
    return found.view(1, -1, 1, 1, 1)


def _modulation(table: Tensor | None, embedded: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of shift and scale, [1 c 1 1 1]."""
    if table is None or embedded is None:
        return []
    parts = (embedded.unflatten(1, (len(table), -1)) + table[None, ..., None, None, None]).unbind(dim=1)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _convolution(layer: Any, names: Names) -> Layer:
    return lambda x, stream: convolve(x, layer.conv, names[layer], stream, causal=layer.is_causal, repeat_edges=True)


def _resnet(block: Any, names: Names, name: str = "", embedded: Tensor | None = None) -> Layer:
    """Return a residual block; `name` is that of its noise."""
    modulation = _modulation(block.scale_shift_table, embedded)
    parts = (
        (block.norm1, _convolution(block.conv1, names), block.per_channel_scale1),
        (block.norm2, _convolution(block.conv2, names), block.per_channel_scale2),
    )

    def layer(x: Tensor, stream: StreamState) -> Tensor:
        stream.put(names[block], x)
        for place, (norm, conv, noise) in enumerate(parts):
            x = _last(norm, x)
            if modulation:
                shift, scale = modulation[place]
                x = x * (1 + scale) + shift
            x = conv(block.nonlinearity(x), stream)
            if noise is not None:
                pattern = Rng(0).child(f"{name}/{place}").normal(*x.shape[-2:]).to(x)
                x = x + (pattern * noise)[None, :, None]
        past = stream.take(names[block], x.shape[2])
        if block.norm3 is not None:
            past = _last(block.norm3, past)
        if block.conv_shortcut is not None:
            past = block.conv_shortcut.conv(past)
        return x + past

    return layer


def _downsampler(layer: Any, names: Names) -> Layer:
    convolution, started = _convolution(layer.conv, names), names[layer]

    def down(x: Tensor, stream: StreamState) -> Tensor:
        if started not in stream.tensors:  # a film's first frame is as many as are averaged
            x = torch.cat([x[:, :, :1].expand(-1, -1, layer.stride[0] - 1, -1, -1), x], dim=2)
            stream.tensors[started] = x[:, :, :0].clone()
        averaged = _folded(x, layer.stride).unflatten(1, (-1, layer.group_size)).mean(dim=2)
        return _folded(convolution(x, stream), layer.stride) + averaged

    return down


def _upsampler(layer: Any, names: Names) -> Layer:
    convolution, started = _convolution(layer.conv, names), f"{names[layer]}.started"

    def up(x: Tensor, stream: StreamState) -> Tensor:
        stream.put(names[layer], x)
        found = convolution(x, stream)
        past = stream.take(names[layer], found.shape[2])
        grown = _unfolded(found, layer.stride)
        if layer.residual:
            repeats = layer.stride[0] * layer.stride[1] * layer.stride[2] // layer.upscale_factor
            grown = grown + _unfolded(past, layer.stride).repeat(1, repeats, 1, 1, 1)
        if started in stream.tensors:
            return grown
        stream.tensors[started] = x[:, :, :0].clone()
        return grown[:, :, layer.stride[0] - 1 :]

    return up


def _head(network: Any, embedded: Tensor | None = None) -> Layer:
    modulation = _modulation(getattr(network, "scale_shift_table", None), embedded)

    def layer(x: Tensor, _: StreamState) -> Tensor:
        x = _last(network.norm_out, x)
        for shift, scale in modulation:
            x = x * (1 + scale) + shift
        found: Tensor = network.conv_act(x)
        return found

    return layer


def _with_variances(x: Tensor, _: StreamState) -> Tensor:
    """Repeat the one variance [1 c+1 t h w] for every channel."""
    return torch.cat([x, x[:, -1:].expand(-1, x.shape[1] - 2, -1, -1, -1)], dim=1)


def _last(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise [b c t h w] over its channels."""
    found: Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return found


def _patched(x: Tensor, patch: int) -> Tensor:
    """[b c t h*p w*q] -> [b c*q*p t h w], p and q the patch."""
    return x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatched(x: Tensor, patch: int) -> Tensor:
    return x.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _folded(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[b c t*p h*q w*r] -> [b c*p*q*r t h w]."""
    x = x.unflatten(4, (-1, stride[2])).unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _unfolded(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[b c*p*q*r t h w] -> [b c t*p h*q w*r]."""
    x = x.unflatten(1, (-1, *stride))
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
