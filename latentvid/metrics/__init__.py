"""Metrics of videos, fed chunk by chunk; the names resolve on first use, so that naming them loads no torch."""

from __future__ import annotations

from latentvid.core.registry import Registry

METRICS = Registry(
    "metric",
    {
        "psnr": "latentvid.metrics.psnr:Psnr",
        "curve": "latentvid.metrics.curve:PsnrCurve",
        "ssim": "latentvid.metrics.ssim:Ssim",
        "lpips": "latentvid.metrics.lpips:Lpips",
        "flicker": "latentvid.metrics.flicker:Flicker",
        "frechet": "latentvid.metrics.frechet:Frechet",
        "seam": "latentvid.metrics.seam:Seam",
        "drift": "latentvid.metrics.drift:Drift",
    },
)
