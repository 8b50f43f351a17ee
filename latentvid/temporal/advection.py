"""Letting the text set things moving: features of neighbouring frames, pushed aside by amounts that words choose.

A caption tells which way things move, but a network that mixes frames place by place must first grow features that
differ by direction, and then let the text choose among them: a product of two things that both start at nothing. Here
the text moves the features itself. x(p + d) = x(p) + d . grad x(p) to first order, with one d per channel and frame
tap, linear in an embedding of the text: from the first step on, the error tells d which way to go. Kernels that follow
their condition are known as dynamic convolutions (Yang et al., CondConv, arXiv 1904.04971); this one has two basis
kernels, the derivatives along x and y.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextMotion(nn.Module):
    """What a text says, pooled over its tokens: [b l d] -> [b d], each row normalised.

    Args:
        width: d, a multiple of `num_heads`.
        num_heads: of the pooling attention.
    """

    def __init__(self, width: int, *, num_heads: int = 4) -> None:
        super().__init__()
        # Where no text is read, as in decoders, diffusers need not be imported.
        from diffusers.models.embeddings import TextTimeEmbedding

        self.pooling = TextTimeEmbedding(width, width, num_heads)

    def forward(self, text: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(text)
        return pooled


class Advection(nn.Module):
    """x + gx * dx + gy * dy on [n c h w], with gx and gy per row and channel from an embedding [n d].

    Starts as the identity. Shifts are in units of this resolution's pixels and good to first order.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.shifts = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.shifts.weight)
        nn.init.zeros_(self.shifts.bias)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        # As one convolution with a kernel for every row and channel: nine times as fast as differences, on a CPU.
        across, down = (self.shifts(motion) / 2).to(x.dtype).unflatten(1, (2, -1)).unbind(1)
        one, none = torch.ones_like(across), torch.zeros_like(across)
        kernels = torch.stack([none, -down, none, -across, one, across, none, down, none], dim=-1)
        rows = x.reshape(1, -1, *x.shape[-2:])  # [1 n*c h w]
        return F.conv2d(rows, kernels.view(-1, 1, 3, 3), padding=1, groups=rows.shape[1]).reshape(x.shape)
