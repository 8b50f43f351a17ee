"""Noise priors: the law, across frames, of the noise that a video model was trained with and must be sampled with."""

from __future__ import annotations

from latentvid.core.registry import Registry

PRIORS = Registry(
    "noise prior",
    {
        "iid": "latentvid.noise.iid:IidNoise",
        "mixed": "latentvid.noise.mixed:MixedNoise",
        "progressive": "latentvid.noise.progressive:ProgressiveNoise",
        "decomposed": "latentvid.noise.decomposed:DecomposedNoise",
    },
)
"""Diffusers loads a pipeline's prior only from a module already imported: ask here for every kind beforehand."""
