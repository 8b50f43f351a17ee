"""Tiny networks and pipelines, real in every part, for tests of whatever is built from them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.data.tokenizer import build_tokenizer
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.noise import PRIORS
from latentvid.pipeline import LatentVideoPipeline
from latentvid.temporal.inject import temporal_parameters

CAPTIONS = ["clouds drift left over hills at dusk", "clouds drift right over the sea at noon", "stars over a city"]
TEXT_WIDTH = 16


def vae_kl(*, seed: int = 0) -> AutoencoderKL:
    """Return an f2 autoencoder with 3 latent channels."""
    return _seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=3,
            scaling_factor=0.7,
            mid_block_add_attention=False,
        ),
        seed,
    )


def vae_tiny(*, seed: int = 0) -> AutoencoderTiny:
    """Return an f2 autoencoder with 3 latent channels."""
    return _seeded(
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=3,
        ),
        seed,
    )


UNET_CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}


def image_unet(*, seed: int = 0) -> UNet2DConditionModel:
    return _seeded(lambda: UNet2DConditionModel(**UNET_CONFIG), seed)


def temporal_unet(*, seed: int = 0, trained: bool = True) -> TemporalUNet:
    """Return a temporal U-Net; a `trained` one has temporal weights that are not zero."""
    unet = _seeded(lambda: TemporalUNet(**UNET_CONFIG, temporal_num_heads=2), seed)
    return disturb(unet) if trained else unet


def disturb(network: Any, *, seed: int = 1, by: float = 0.2) -> Any:
    """Move temporal weights away from rest, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in temporal_parameters(network).values():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return network


def text_parts(*, seed: int = 0) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = build_tokenizer(CAPTIONS, vocab_size=520, max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, _seeded(lambda: CLIPTextModel(config), seed)


def pipeline(
    *,
    vae: nn.Module | None = None,
    unet: TemporalUNet | None = None,
    scheduler: Any = None,
    prior: str = "progressive",
    num_frames: int = 6,
    overlap_rule: dict[str, Any] | None = None,
) -> LatentVideoPipeline:
    """Return a pipeline of 8x8 pixels and windows of `num_frames`, with temporal weights that are not zero."""
    tokenizer, text_encoder = text_parts()
    return LatentVideoPipeline(
        vae=vae if vae is not None else disturb(TemporalAutoencoder.from_image(vae_kl())),
        unet=unet if unet is not None else temporal_unet(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=2.0),
        noise_prior=PRIORS.get(prior)(),
        num_frames=num_frames,
        fps=12.0,
        overlap_rule=overlap_rule,
    )


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()
