"""Gaussian clips and noise levels on which the best denoiser and the exact samples are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentvid.core.levels import Level, Levels, NoiseSchedule
from latentvid.sampling.solver import Denoise

NUM_FRAMES = 8
Schedule = Callable[[int], Levels]


def angles(num_steps: int) -> Levels:
    """Variance-preserving levels evenly spaced in angle, from pure noise."""
    phi = torch.linspace(math.pi / 2, 0, num_steps + 1, dtype=torch.float64)
    alpha, sigma = phi.cos(), phi.sin()
    alpha[0], sigma[0], alpha[-1], sigma[-1] = 0, 1, 1, 0
    return Levels(alpha, sigma, 1000 * phi)


def flow(num_steps: int) -> Levels:
    return NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}).levels(num_steps)


def shifted_flow(num_steps: int) -> Levels:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    return NoiseSchedule.from_config(config).levels(num_steps)


def stable_diffusion(num_steps: int) -> Levels:
    config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
    return NoiseSchedule.from_config(config).levels(num_steps)


def zero_snr(num_steps: int) -> Levels:
    config = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 8.5e-4,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    }
    return NoiseSchedule.from_config(config).levels(num_steps)


SCHEDULES: list[Schedule] = [angles, flow, shifted_flow, stable_diffusion, zero_snr]


def data_covariance() -> Tensor:
    index = torch.arange(NUM_FRAMES, dtype=torch.float64)
    return 0.95 ** (index[:, None] - index[None]).abs()


def best_denoiser(noise_covariance: Tensor) -> Denoise:
    """The conditional mean of Gaussian clips under noise of this frame covariance."""
    data = data_covariance()

    def denoise(x: Tensor, level: Level) -> Tensor:
        a, s = level.alpha, level.sigma
        weights = a * data @ torch.linalg.inv(a**2 * data + s**2 * noise_covariance)
        return torch.einsum("ts,bcshw->bcthw", weights, x)

    return denoise


def factor(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
