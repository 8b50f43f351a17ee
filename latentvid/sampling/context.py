"""Clean frames beside noisy ones: a window continues, or fills in between, the frames that it is shown.

Needs a denoiser that was trained with a noise level per frame, as in "Diffusion Forcing" (arXiv 2407.01392).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentvid.core.levels import Level
from latentvid.sampling.solver import Denoise


def with_clean_context(
    denoise: Denoise,
    clean_frames: Tensor,
    *,
    places: Sequence[int] | None = None,
    context_level: Level | None = None,
    context_noise: Tensor | None = None,
) -> Denoise:
    """Show `denoise` some true frames of the window, and return them as their own estimate.

    Compose guidance inside this, not around it: rescaled guidance would change the given frames.

    Args:
        denoise: takes levels per frame, [b t].
        clean_frames: latents [b c p h w] of p frames of the window.
        places: where in the window these stand; by default they are its first p frames.
        context_level: show them at this level (scalars) instead of clean; a little noise keeps a long rollout
            from trusting its own errors.
        context_noise: noise from the prior for that level, [b c p h w]; one draw for the whole window.
    """
    if (context_level is None) != (context_noise is None):
        raise ValueError("context_level and context_noise go together")
    at = torch.as_tensor(range(clean_frames.shape[2]) if places is None else places, dtype=torch.long)
    if len(at) != clean_frames.shape[2]:
        raise ValueError(f"{len(at)} places for {clean_frames.shape[2]} frames")
    shown = clean_frames
    if context_level is not None and context_noise is not None:
        shown = context_level.alpha * clean_frames + context_level.sigma * context_noise.to(clean_frames)

    def denoise_with_context(x: Tensor, level: Level) -> Tensor:
        is_context = torch.zeros(x.shape[2], dtype=torch.bool, device=level.alpha.device)
        is_context[at.to(is_context.device)] = True
        is_context = is_context.expand(len(x), -1)
        mixed = level.where_clean(is_context)
        if context_level is not None:
            mixed = _where(is_context, context_level, mixed)
        here = at.to(x.device)
        estimate = denoise(x.index_copy(2, here, shown.to(x)), mixed)
        return estimate.index_copy(2, here, clean_frames.to(estimate))

    return denoise_with_context


def keep_given(clean: Tensor, given: Tensor, places: Sequence[int]) -> Tensor:
    """Put given frames back into a sampled window, and take off the others what the given ones came out wrong by.

    Most of what a window gets wrong is common to its frames, and would show as a step beside the given ones. It is
    known where given frames lie next to free ones: it is taken as linear between the first and the last of these
    places, and as constant beyond them. Frames that were shown come out right, and so take nothing off.

    Args:
        clean: [b c t h w].
        given: [b c p h w] of p frames of the window.
        places: where in the window these stand, in order.
    """
    free = set(range(clean.shape[2])) - set(places)
    edges = [place for place in places if {place - 1, place + 1} & free]
    whole = clean.index_copy(2, torch.as_tensor(places, device=clean.device), given.to(clean))
    if not edges:
        return whole
    first, last = edges[0], edges[-1]
    wrong = clean - whole
    times = torch.arange(clean.shape[2], device=clean.device, dtype=clean.dtype)
    weights = ((times - first) / max(1, last - first)).clamp(0, 1).view(1, 1, -1, 1, 1)
    off = torch.lerp(wrong[:, :, first : first + 1], wrong[:, :, last : last + 1], weights)
    at = torch.as_tensor(sorted(free), device=clean.device)
    return whole.index_copy(2, at, (clean - off).index_select(2, at))


def _where(mask: Tensor, chosen: Level, other: Level) -> Level:
    return Level(
        torch.where(mask, chosen.alpha.to(other.alpha), other.alpha),
        torch.where(mask, chosen.sigma.to(other.sigma), other.sigma),
        torch.where(mask, chosen.timestep.to(other.timestep), other.timestep),
    )
