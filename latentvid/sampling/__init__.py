"""From noise to latents: solvers over (alpha, sigma), guidance, and the hooks of reuse-and-diffuse."""

from __future__ import annotations

from latentvid.core.registry import Registry

SOLVERS = Registry(
    "solver",
    {
        "euler": "latentvid.sampling.euler:Euler",
        "heun": "latentvid.sampling.heun:Heun",
        "dpmpp_2m": "latentvid.sampling.dpmpp_2m:DpmPp2M",
        "ancestral": "latentvid.sampling.ancestral:Ancestral",
    },
)
