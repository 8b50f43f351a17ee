"""Gradient checkpointing of the spatial blocks of a decoder with temporal layers (arXiv 1604.06174).

A block's own forward pass is stateless and can be computed twice. The temporal layer that follows it as a hook lies
outside: computed again, a causal layer would advance its past twice, or find that its clip is over.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from latentvid.temporal.inject import CHILD


def checkpoint_spatial_blocks(decoder: nn.Module) -> None:
    """Make every block that a temporal layer follows keep its input alone; in place, for good."""
    for block in decoder.modules():
        if hasattr(block, CHILD):
            block.forward = partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)
