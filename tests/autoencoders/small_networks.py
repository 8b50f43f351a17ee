"""Small image networks of every class that video autoencoders are made of, with weights that differ from rest."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.temporal.inject import temporal_parameters

KINDS = ("kl", "kl-plain", "tiny")


def image_network(kind: str, *, seed: int = 0) -> nn.Module:
    """Return "kl" (attention in the middle, quant convolutions, a shift), "kl-plain" (neither), or "tiny"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "tiny":
            widths = (16, 16, 16)
            network: nn.Module = AutoencoderTiny(
                encoder_block_out_channels=widths,
                decoder_block_out_channels=widths,
                num_encoder_blocks=(1, 2, 1),
                num_decoder_blocks=(2, 1, 1),
            )
        else:
            plain = kind == "kl-plain"
            network = AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                latent_channels=3,
                scaling_factor=0.7,
                shift_factor=None if plain else 0.2,
                use_quant_conv=not plain,
                use_post_quant_conv=not plain,
                mid_block_add_attention=not plain,
            )
    return network.eval()


def grown(kind: str, *, trained: bool, **temporal: int) -> TemporalAutoencoder:
    """Return a temporal autoencoder; a `trained` one has temporal weights that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = TemporalAutoencoder.from_image(image_network(kind), **temporal)
        if trained:
            for parameter in temporal_parameters(network).values():
                parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.requires_grad_(False)
