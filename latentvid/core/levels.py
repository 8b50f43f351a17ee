"""Noise levels: the pairs (alpha, sigma) of x = alpha * clean + sigma * eps.

One description serves variance-preserving (DDPM, DDIM) and flow (rectified) models, so a solver needs to know
neither. A level may be one number per clip or one per frame, [b t]; the latter is what lets a window hold
clean context beside noisy frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError

MOST_NOISE_LEFT = 0.1
"""The most sigma at the end of sampling; what ends noisier is no clip."""


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level. `timestep` is what the network is told; all three are scalars, [b], or [b t]."""

    alpha: Tensor
    sigma: Tensor
    timestep: Tensor

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) in x's dtype and device, shaped to multiply x [b c t h w]."""
        return _broadcast(self.alpha, x), _broadcast(self.sigma, x)

    def per_frame(self, batch: int, frames: int) -> Level:
        """Return the level spelled out as [b t]."""
        expand = lambda v: _per_frame(v).expand(batch, frames)  # noqa: E731
        return Level(expand(self.alpha), expand(self.sigma), expand(self.timestep))

    def where_clean(self, is_clean: Tensor) -> Level:
        """Return a per-frame level that is clean (alpha 1, sigma 0, timestep 0) where `is_clean` [b t] holds."""
        level = self.per_frame(*is_clean.shape)
        return Level(
            torch.where(is_clean, torch.ones_like(level.alpha), level.alpha),
            torch.where(is_clean, torch.zeros_like(level.sigma), level.sigma),
            torch.where(is_clean, torch.zeros_like(level.timestep), level.timestep),
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """The n + 1 levels of n solver steps, noisiest first. Float64, [n+1].

    The last level is clean (alpha 1, sigma 0), or nearly so where a scheduler ends at the first level that its network
    was trained at; then the last step may lead from that level to itself.
    """

    alpha: Tensor
    sigma: Tensor
    timestep: Tensor

    def __post_init__(self) -> None:
        if not self.alpha.shape == self.sigma.shape == self.timestep.shape or self.alpha.ndim != 1:
            raise ValueError("alpha, sigma and timestep must be vectors of one length")
        if len(self.alpha) < 2:
            raise ValueError("levels need at least one step: two entries")
        if self.sigma[-1] > MOST_NOISE_LEFT or (self.sigma[-1] == 0 and self.alpha[-1] != 1):
            raise ValueError(f"the last level must be clean, not alpha={self.alpha[-1]:g} sigma={self.sigma[-1]:g}")
        # A start that is almost but not exactly pure noise (alpha = 6e-17) ruins every division by alpha.
        if 0 < abs(float(self.alpha[0])) < 1e-8:
            raise ValueError(f"alpha[0]={float(self.alpha[0]):g} is neither zero nor usable; round it to 0")
        if not ((self.alpha >= 0) & (self.sigma >= 0)).all():
            raise ValueError("alpha and sigma cannot be negative")
        falls = torch.diff(self.sigma / (self.alpha + self.sigma))
        if not (falls[:-1] < 0).all() or not (falls[-1] < 0 or (falls[-1] == 0 and self.sigma[-1] > 0)):
            raise ValueError("levels must go strictly from noisy to clean")

    def __len__(self) -> int:
        """Number of solver steps."""
        return len(self.alpha) - 1

    def __getitem__(self, i: int) -> Level:
        return Level(self.alpha[i], self.sigma[i], self.timestep[i])


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """Where a network's timesteps lie in (alpha, sigma), and n steps evenly spaced in them.

    This is how models trained here are read; `latentvid.sampling.schedule` asks the schedulers of others. `kind` is
    "vp" (alphas_cumprod of DDPM/DDIM/DPM-Solver configs) or "flow" (alpha = 1 - sigma). Timesteps
    are 0 .. num_train_timesteps - 1 for "vp" and num_train_timesteps * sigma for "flow".
    """

    kind: str
    num_train_timesteps: int
    alphas_cumprod: Tensor | None
    """Float64 [num_train_timesteps], only for "vp"."""
    shift: float = 1.0
    """Flow only: sigma -> shift * sigma / (1 + (shift - 1) * sigma), for sampling and for training alike."""
    prediction_type: str = "epsilon"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read the config of a diffusers scheduler with plain betas or a constant shift.

        Raises:
            CheckpointError: the config is of a kind that has no (alpha, sigma) reading here.
        """
        name = str(config.get("_class_name", ""))
        steps = int(config.get("num_train_timesteps", 1000))
        if not 1 <= steps <= 1_000_000:
            raise CheckpointError(f"scheduler config: num_train_timesteps={steps} is out of range.")
        for setting in ("use_flow_sigmas", "snr_shift_scale", "use_dynamic_shifting"):
            if config.get(setting):
                raise CheckpointError(
                    f"{name}: even spacing does not know {setting}; ask the scheduler (spacing: scheduler)."
                )
        if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
            raise CheckpointError(
                f"{name}: even spacing does not know continuous timesteps; ask the scheduler (spacing: scheduler)."
            )
        if name.startswith("FlowMatch"):
            return cls("flow", steps, None, float(config.get("shift") or 1.0), "flow")
        if not name and not {"beta_schedule", "beta_start", "trained_betas"} & set(config):
            # diffusers writes the class into a saved config only: of a scheduler in memory, the caller must say it.
            raise CheckpointError("scheduler config: it names no class and no betas, so it says nothing of the noise.")
        betas = _betas(config, steps)
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if config.get("rescale_betas_zero_snr"):
            root = alphas_cumprod.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            alphas_cumprod = root**2
        return cls("vp", steps, alphas_cumprod, prediction_type=str(config.get("prediction_type") or "epsilon"))

    def level(self, timestep: Tensor) -> Level:
        """Return the level of network timesteps (any shape; integers for "vp", reals for "flow")."""
        if self.kind == "flow":
            sigma = timestep.double() / self.num_train_timesteps
            return Level(1 - sigma, sigma, timestep.double())
        assert self.alphas_cumprod is not None
        kept = self.alphas_cumprod.to(timestep.device)[timestep.long()]
        return Level(kept.sqrt(), (1 - kept).sqrt(), timestep.double())

    def timestep_of(self, sigma: Tensor | float) -> Tensor:
        """Return the timesteps, float64, whose sigma is the given one (any shape) or, for "vp", the nearest."""
        wanted = torch.as_tensor(sigma, dtype=torch.float64)
        if self.kind == "flow":
            return wanted * self.num_train_timesteps
        assert self.alphas_cumprod is not None
        every = (1 - self.alphas_cumprod).sqrt().to(wanted.device)
        return (wanted[..., None] - every).abs().argmin(dim=-1).double()

    def levels(self, num_steps: int, *, seq_len: int | None = None, mu: float | None = None) -> Levels:
        """Return `num_steps` steps from the noisiest level to clean, evenly spaced as diffusers' "trailing".

        `seq_len` and `mu` are for schedules whose shift is dynamic.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        if self.kind == "flow":
            sigma = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
            sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
            return Levels(1 - sigma, sigma, sigma * self.num_train_timesteps)
        if num_steps > self.num_train_timesteps:
            raise ValueError(f"num_steps={num_steps} exceeds the {self.num_train_timesteps} trained timesteps")
        top = self.num_train_timesteps
        grid = torch.linspace(top, 0, num_steps + 1, dtype=torch.float64)[:-1].round().long() - 1
        level = self.level(grid)
        alpha = torch.where(level.alpha < 1e-8, torch.zeros_like(level.alpha), level.alpha)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return Levels(torch.cat([alpha, one]), torch.cat([level.sigma, zero]), torch.cat([level.timestep, zero]))


def _betas(config: Mapping[str, Any], steps: int) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    kind = config.get("beta_schedule", "linear")
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    raise CheckpointError(
        f"scheduler config: beta_schedule={kind!r} is not known; known: linear, scaled_linear, squaredcos_cap_v2."
    )


def _per_frame(value: Tensor) -> Tensor:
    if value.ndim == 0:
        return value.view(1, 1)
    return value.unsqueeze(1) if value.ndim == 1 else value


def _broadcast(value: Tensor, x: Tensor) -> Tensor:
    value = value.to(device=x.device, dtype=x.dtype)
    if value.ndim == 0:
        return value
    return _per_frame(value).view(*_per_frame(value).shape, 1, 1)[:, None]  # [b 1 t 1 1]
