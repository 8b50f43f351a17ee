"""A temporal U-Net as the call that solvers know: noisy latents and a level in, the clean estimate out."""

from __future__ import annotations

import torch
from torch import Tensor

from latentvid.core.levels import Level, NoiseSchedule
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.sampling.guidance import classifier_free_batched
from latentvid.sampling.prediction import to_clean
from latentvid.sampling.solver import Denoise


def unet_denoiser(
    unet: TemporalUNet,
    schedule: NoiseSchedule,
    text: Tensor,
    *,
    null_text: Tensor | None = None,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
) -> Denoise:
    """Return `denoise(x [b c t h w] float32, level) -> clean [b c t h w] float32`.

    The network computes in its own dtype; what goes in and what comes out is float32.

    Args:
        unet: the network.
        schedule: what its prediction means, and which timestep a level is.
        text: embeddings of the prompts, [b l d] or [b t l d].
        null_text: embeddings of the negative (or empty) prompts, needed for guidance.
        guidance_scale: classifier-free guidance; 1 is none.
        guidance_rescale: how far guidance's gain in contrast is taken back, 0..1.
    """
    conditional = _denoiser(unet, schedule, text)
    if null_text is None or guidance_scale == 1:
        return conditional
    both = _denoiser(unet, schedule, torch.cat([text, null_text]))
    return classifier_free_batched(conditional, both, guidance_scale, rescale=guidance_rescale)


def _denoiser(unet: TemporalUNet, schedule: NoiseSchedule, text: Tensor) -> Denoise:
    text = text.to(unet.dtype)

    def denoise(x: Tensor, level: Level) -> Tensor:
        nonlocal text
        text = text.to(x.device)  # where the U-Net computes; it may wait in host memory between its calls
        timestep = level.per_frame(x.shape[0], x.shape[2]).timestep.to(x.device, torch.float32)
        output = unet(x.to(unet.dtype), timestep, text).to(x.dtype)
        return to_clean(output, x, level, schedule.prediction_type)

    return denoise
