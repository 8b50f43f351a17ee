"""Inverting a clip and sampling from the result gives the clip back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.core.levels import Level
from latentvid.noise.progressive import ProgressiveNoise
from latentvid.sampling import SOLVERS
from latentvid.sampling.inversion import invert
from latentvid.sampling.staged import StagedGuidance, overlap_frames
from tests.sampling.toys import (
    NUM_FRAMES,
    SCHEDULES,
    Schedule,
    angles,
    best_denoiser,
    data_covariance,
    factor,
)

DENOISE = best_denoiser(ProgressiveNoise().covariance(NUM_FRAMES))


def clips(batch: int = 1) -> Tensor:
    noise = torch.randn(batch, 4, NUM_FRAMES, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.einsum("ts,bcshw->bcthw", factor(data_covariance()), noise)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [7, 30])
def test_there_and_back(schedule: Schedule, num_steps: int) -> None:
    clean, levels = clips(), schedule(num_steps)
    states = invert(DENOISE, clean, levels, num_iterations=300)
    assert states.shape == (num_steps, *clean.shape)
    again: list[Tensor] = []
    end = SOLVERS.get("euler")()(DENOISE, states[0], levels, on_step=lambda i, x: again.append(x) or x)
    torch.testing.assert_close(end, clean, atol=1e-5, rtol=0)
    for i in range(num_steps):
        torch.testing.assert_close(again[i], states[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("num_iterations", "bound"), [(1, 0.15), (3, 0.02), (10, 0.002)])
def test_iterations_pay(num_iterations: int, bound: float) -> None:
    clean, levels = clips(), angles(30)
    states = invert(DENOISE, clean, levels, num_iterations=num_iterations)
    end = SOLVERS.get("euler")()(DENOISE, states[0], levels)
    assert (end - clean).norm() / clean.norm() < bound


def test_inverted_noise_follows_the_prior() -> None:
    """Euler's exact inverse of the data's law is the law that Euler's solver maps to it: nearly the prior."""
    start = invert(DENOISE, clips(500), angles(100), num_iterations=5)[0]
    found = torch.einsum("bcthw,bcshw->ts", start, start) / start[:, :, 0].numel()
    expected = ProgressiveNoise().covariance(NUM_FRAMES)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_the_tail_of_a_real_clip_guides_the_next_window() -> None:
    clean, levels = clips(), angles(20)
    tail = overlap_frames(invert(DENOISE, clean, levels, num_iterations=20), 4, "chronological")
    x = torch.randn_like(clean)
    x[:, :, :4] = tail[0]
    end = SOLVERS.get("euler")()(DENOISE, x, levels, on_step=StagedGuidance(tail, share=1.0, num_steps=20))
    join = (end[:, :, 0] - clean[:, :, 4]).abs().mean()
    assert join < 0.25 * (clean[:, :, 0] - clean[:, :, 4]).abs().mean()


def test_the_clip_is_untouched() -> None:
    clean = clips()
    before = clean.clone()
    invert(DENOISE, clean, angles(5))
    assert torch.equal(clean, before)


def test_a_denoiser_that_never_moves() -> None:
    estimate = clips()

    def denoise(x: Tensor, level: Level) -> Tensor:
        return estimate

    states = invert(denoise, estimate, angles(9))
    torch.testing.assert_close(SOLVERS.get("euler")()(denoise, states[0], angles(9)), estimate)
    with pytest.raises(ValueError, match="num_iterations"):
        invert(denoise, estimate, angles(9), num_iterations=0)
