"""What passes of video autoencoders take, counted on films that go through networks without memory for their values.

Nothing is computed: live bytes are added up (`budget.live_bytes`), and a constant covers what kernels use besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentvid.autoencoders import budget
from latentvid.autoencoders.image import settings_of
from latentvid.autoencoders.protocol import Coder
from latentvid.autoencoders.tiling import SharedNorms
from latentvid.temporal.context import StreamState

if TYPE_CHECKING:
    from latentvid.autoencoders.video import VideoAutoencoder

Blank = Callable[["VideoAutoencoder", int], Iterator[Tensor]]
"""Gives a film of so many frames, one at a time."""
WORKSPACE = 1.6
"""What a pass takes in all, over the tensors that it holds: kernels copy them into other layouts."""
_PROBE_SIDE = 8
"""Latents per side of the films that costs are measured with."""


def pass_cost(autoencoder: VideoAutoencoder, kind: type[Coder], blank: Blank) -> budget.Cost:
    """Return what a pass of `pass_frames` takes, and what is held between passes."""
    shadow = without_values(autoencoder)
    frames = torch.cat(list(blank(shadow, 1 + _num_passes(autoencoder) * autoencoder.pass_frames)), dim=2)

    def peak(passes_at_once: int) -> int:
        step = passes_at_once * autoencoder.pass_frames
        return budget.live_bytes(_coder(kind, shadow, step).run([frames]))[0]

    one, two = peak(1), peak(2)
    # Architectures whose passes are of one length only show no difference: all of it is the pass.
    each = two - one if two > one else one
    pixels = (_PROBE_SIDE * autoencoder.spatial_factor) ** 2
    return budget.Cost(WORKSPACE * each / pixels, (one - each) / pixels)


def tile_cost(autoencoder: VideoAutoencoder, kind: type[Coder], blank: Blank, network: nn.Module | None) -> budget.Cost:
    """Return what a pass of `pass_frames` over a tile takes, and what every tile holds meanwhile.

    Args:
        kind: of the coder that each tile has.
        network: that it uses, where norms are shared.
    """
    shadow, step = without_values(autoencoder), autoencoder.pass_frames
    frames = 1 + _num_passes(autoencoder) * step
    peak, between = budget.live_bytes(_coder(kind, shadow, step).run(blank(shadow, frames)))
    pixels = (_PROBE_SIDE * autoencoder.spatial_factor) ** 2
    # Films that find the statistics of norms go along with those that use them.
    films = 2 if SharedNorms(network, 1) else 1
    return budget.Cost((WORKSPACE * peak - between) / pixels, films * between / pixels, budget.PICTURE_BYTES * step)


def _coder(kind: type[Coder], autoencoder: VideoAutoencoder, num_frames: int) -> Coder:
    """Return a coder at a film's start, in passes of so many frames."""
    return kind(autoencoder, StreamState(), lambda *_: num_frames)


def _num_passes(autoencoder: VideoAutoencoder) -> int:
    """Return how many passes are more than anything that layers hold back."""
    return 4 + (autoencoder.num_temporal_convs if autoencoder.looks_ahead else 0)


def blank_frames(autoencoder: VideoAutoencoder, num_frames: int) -> Iterator[Tensor]:
    """Yield a film's frames [1 3 1 h w]."""
    side = _PROBE_SIDE * autoencoder.spatial_factor
    return (_blank(autoencoder, 3, side) for _ in range(num_frames))


def blank_latents(autoencoder: VideoAutoencoder, num_frames: int) -> Iterator[Tensor]:
    """Yield the latents [1 c 1 h w] of a film of so many frames."""
    channels = autoencoder.latent_channels
    return (_blank(autoencoder, channels, _PROBE_SIDE) for _ in range(autoencoder.num_latents(num_frames)))


def _blank(autoencoder: VideoAutoencoder, channels: int, side: int) -> Tensor:
    return torch.empty(1, channels, 1, side, side, device=autoencoder.device, dtype=autoencoder.dtype)


def without_values(autoencoder: VideoAutoencoder) -> VideoAutoencoder:
    """Return an autoencoder like this one, without memory for its values."""
    kind = type(autoencoder.network)
    with torch.device("meta"):
        network = kind.from_config(settings_of(kind, autoencoder.network.config))
    # ModelMixin.to warns of casts that do not matter here, and some parameters are made on the CPU all the same.
    return type(autoencoder)(nn.Module.to(network, "meta", autoencoder.dtype).eval())
