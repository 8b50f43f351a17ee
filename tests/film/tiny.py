"""A whole pipeline of real parts that is small enough to make films with in seconds; its weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.files import sha256_of
from latentvid.pipeline import LatentVideoPipeline
from latentvid.temporal.inject import temporal_parameters
from latentvid.training.recipes import AutoencoderNetwork, PriorChoice, TextSizes, UNetSizes

STEPS = {"num_inference_steps": 2}


def tiny_pipeline() -> LatentVideoPipeline:
    """32x32 pixels, windows of 8 frames that share 2; temporal layers that do something."""
    torch.manual_seed(0)
    vae = TemporalAutoencoder.from_image(AutoencoderNetwork(block_out_channels=(8, 16, 16)).build(32))
    tokenizer, text_encoder = TextSizes(width=32, num_layers=1, num_heads=2).build(["clouds", "sea at night"])
    unet = UNetSizes(block_out_channels=(16, 32), attention=(False, True), norm_num_groups=8).build(4, 8, 32)
    for network in (vae, unet):
        for parameter in temporal_parameters(network).values():
            torch.nn.init.normal_(parameter, std=0.1)
    pipeline = LatentVideoPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        noise_prior=PriorChoice().build(),
        num_frames=8,
        fps=12.0,
        overlap_rule={"kind": "reuse", "overlap": 2},
    )
    for network in (vae, unet, text_encoder):
        network.eval()
    return pipeline


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.glob(pattern))}
