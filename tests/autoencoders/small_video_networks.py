"""Small diffusers video autoencoders of every class that we run, with weights that differ from rest."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

CONFIGS: dict[str, dict[str, Any]] = {
    "svd": {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "block_out_channels": (32, 32),
        "latent_channels": 3,
        "scaling_factor": 0.7,
    },
    "cogvideox": {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": (8, 8, 8, 16),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
    },
    "wan": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 0.5, 2.0, 1.0],
    },
    "wan2.2": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 8,
        "decoder_base_dim": 16,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 0.5, 2.0, 1.0],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
    },
    "ltx": {
        "_class_name": "AutoencoderKLLTXVideo",
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("LTXVideoDownBlock3D",) * 3,
        "decoder_block_out_channels": (8, 8, 16),
        "layers_per_block": (1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, False),
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("conv",) * 3,
        "upsample_residual": (False,) * 3,
        "upsample_factor": (1, 1, 1),
        "patch_size": 2,
        "scaling_factor": 0.7,
    },
    "ltx0.9.5": {
        "_class_name": "AutoencoderKLLTXVideo",
        "latent_channels": 4,
        "block_out_channels": (8, 16, 16, 16, 16),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
        "patch_size": 2,
        "spatial_compression_ratio": 16,
        "temporal_compression_ratio": 8,
    },
    "hunyuan": {
        "_class_name": "AutoencoderKLHunyuanVideo",
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
}
KINDS = tuple(CONFIGS)


def video_network(kind: str, *, seed: int = 0) -> nn.Module:
    """Return diffusers' own network."""
    config = dict(CONFIGS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(diffusers, config.pop("_class_name"))(**config)
        for name, parameter in network.named_parameters():
            if name.endswith("mix_factor"):
                parameter.data += 0.3 * torch.randn(parameter.shape)
        if kind.startswith("ltx"):
            network.latents_mean += 0.2
            network.latents_std *= 1.7
    return network.requires_grad_(False).eval()
