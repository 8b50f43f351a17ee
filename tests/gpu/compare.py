"""How near what a GPU computes must be to what the CPU computes, and the switches that decide it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

EXACT, TF32, HALF = 1e-4, 1e-2, 0.05
"""Root mean square errors, as shares of the spread: of float32, with products rounded to 10 bits, and of bfloat16."""


AS_SHIPPED = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
"""PyTorch's own choice, which other processes have."""


@contextmanager
def tf32(*, allowed: bool | None) -> Iterator[None]:
    """Let products of float32 be rounded to 10 bits of mantissa on CUDA, or not; None is as PyTorch has it."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrices.allow_tf32, convolutions.allow_tf32
    chosen = AS_SHIPPED if allowed is None else (allowed, allowed)
    matrices.allow_tf32, convolutions.allow_tf32 = chosen
    try:
        yield
    finally:
        matrices.allow_tf32, convolutions.allow_tf32 = before


def assert_near(found: Tensor, wanted: Tensor, bound: float, what: str = "") -> None:
    """Hold the root mean square of the error, as a share of the spread of `wanted`, to `bound`; no error may be more
    than twenty times that."""
    assert found.shape == wanted.shape, what
    wanted = wanted.detach().double().cpu()
    error = found.detach().double().cpu() - wanted
    assert torch.isfinite(error).all(), what
    spread = float(wanted.std())
    rms, most = float(error.square().mean().sqrt()) / spread, float(error.abs().max()) / spread
    assert rms <= bound, f"{what}: rms {rms:.2e} of the spread, and {bound:.0e} are allowed"
    assert most <= 20 * bound, f"{what}: an error of {most:.2e} of the spread, and {20 * bound:.0e} are allowed"
