"""Self-attention across frames at every place of the picture, zero at initialisation.

The layer of VidRD's Temp-Attn ("Reuse and Diffuse", arXiv 2309.03549), with the frame positions added inside
the branch instead of to the residual stream, so that at initialisation the image network is unchanged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentvid.temporal.context import ClipContext

MOST_ROWS = 1 << 15
"""Places of the picture in one call: CUDA's kernels take no more than 65,535."""


def sinusoidal_positions(num_frames: int, channels: int, device: torch.device) -> Tensor:
    """Return fixed sine and cosine positions, float32 [t c]."""
    half = (channels + 1) // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10000.0) / half))
    angles = torch.arange(num_frames, device=device)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :channels]


class TemporalAttention(nn.Module):
    """x + attention over t, on [b*t c h w]; clips of one frame pass unchanged.

    Args:
        channels: width c of the stream.
        context: tells t; shared by all layers of one network.
        num_heads: attention heads; must divide `channels`.
    """

    def __init__(self, channels: int, context: ClipContext, *, num_heads: int = 4) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide channels={channels}")
        self.context = context
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.context.num_frames
        if frames == 1:
            return x
        _, channels, height, width = x.shape
        tokens = rearrange(x, "(b t) c h w -> (b h w) t c", t=frames)
        positions = sinusoidal_positions(frames, channels, x.device).to(tokens.dtype)
        qkv = self.to_qkv(self.norm(tokens) + positions)
        q, k, v = rearrange(qkv, "p t (n heads d) -> n p heads t d", n=3, heads=self.num_heads)
        parts = zip(*(x.split(MOST_ROWS) for x in (q, k, v)), strict=True)
        mixed = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
        mixed = rearrange(mixed, "p heads t d -> p t (heads d)")
        return x + rearrange(self.to_out(mixed), "(b h w) t c -> (b t) c h w", h=height, w=width)
