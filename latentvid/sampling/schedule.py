"""Noise levels asked of a diffusers scheduler: the levels of its network's timesteps, and those of n sampling steps.

The scheduler object is asked (`set_timesteps`), its config is not read anew: how steps are spaced, shifted, stretched
and ended is diffusers' own arithmetic. Solvers are those of this package, so only a scheduler's levels count. Classes
come from a table, whatever a file names; what has no (alpha, sigma) reading is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError, LatentVidError, UsageError, did_you_mean
from latentvid.core.levels import Level, Levels, NoiseSchedule
from latentvid.core.registry import Registry

Spacing = Literal["even", "scheduler"]
"""How sampling steps are spaced. "even": evenly in the timestep from the noisiest to clean, then shifted, as models
trained here are sampled (and as diffusers' pipelines of HunyuanVideo space theirs). "scheduler": as the scheduler's
`set_timesteps` has it, which is what checkpoints of other makers are meant for."""

INDEXED = {
    "CogVideoXDDIMScheduler": "scheduling_ddim_cogvideox",
    "CogVideoXDPMScheduler": "scheduling_dpm_cogvideox",
    "DDIMScheduler": "scheduling_ddim",
    "DDPMScheduler": "scheduling_ddpm",
    "PNDMScheduler": "scheduling_pndm",
    "TCDScheduler": "scheduling_tcd",
}
"""Schedulers whose levels are entries of `alphas_cumprod`."""

BY_SIGMAS = {
    "DEISMultistepScheduler": "scheduling_deis_multistep",
    "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
    "DPMSolverSinglestepScheduler": "scheduling_dpmsolver_singlestep",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
    "EulerDiscreteScheduler": "scheduling_euler_discrete",
    "FlowMatchEulerDiscreteScheduler": "scheduling_flow_match_euler_discrete",
    "LMSDiscreteScheduler": "scheduling_lms_discrete",
    "UniPCMultistepScheduler": "scheduling_unipc_multistep",
}
"""Schedulers with one entry of `sigmas` per step."""

DOUBLED = {
    "FlowMatchHeunDiscreteScheduler": "scheduling_flow_match_heun_discrete",
    "HeunDiscreteScheduler": "scheduling_heun_discrete",
    "KDPM2AncestralDiscreteScheduler": "scheduling_k_dpm_2_ancestral_discrete",
    "KDPM2DiscreteScheduler": "scheduling_k_dpm_2_discrete",
}
"""Schedulers of second order, which list every step's `sigmas` and `timesteps` twice."""

SCHEDULERS = Registry(
    "scheduler",
    {name: f"diffusers.schedulers.{home}:{name}" for name, home in sorted((INDEXED | BY_SIGMAS | DOUBLED).items())},
)

_INVERSE = "it leads from a clip to its noise, not from noise to a clip"
_CONSISTENCY = "it is for consistency models, whose steps draw all noise anew, as no solver here does"
_EDM = "its networks are scaled as in EDM (sigma_data), for which there is no denoiser here"
REFUSED = {
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "DPMSolverSDEScheduler": "its steps are drawn by torchsde, which is not used here",
    "EDMDPMSolverMultistepScheduler": _EDM,
    "EDMEulerScheduler": _EDM,
    "FlowMatchLCMScheduler": _CONSISTENCY,
    "LCMScheduler": _CONSISTENCY,
}
"""Why known schedulers cannot be used."""

PREDICTION_TYPES = {
    "vp": {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "sample": "sample",
        "original_sample": "sample",
    },
    "flow": {"flow_prediction": "flow"},
}
"""diffusers' prediction types and those of `sampling.prediction`, by kind of schedule; no network has another pair."""


@dataclass(frozen=True, slots=True)
class SchedulerSchedule(NoiseSchedule):
    """The levels of a diffusers scheduler; made by `schedule_of`."""

    scheduler: Any = None
    is_even: bool = False
    """Ask for evenly spaced sigmas, which the scheduler then shifts."""
    is_continuous: bool = False
    """Timesteps are log(sigma / alpha) / 4, of any noise (Stable Video Diffusion), and not places in a table."""

    def level(self, timestep: Tensor) -> Level:
        """Return the level of network timesteps (any shape)."""
        if not self.is_continuous:
            return NoiseSchedule.level(self, timestep)
        alpha, sigma = _variance_preserving((4 * timestep.double()).exp())
        return Level(alpha, sigma, timestep.double())

    def timestep_of(self, sigma: Tensor | float) -> Tensor:
        """Return the timesteps, float64, whose sigma is the given one (any shape), or the nearest of a table."""
        if not self.is_continuous:
            return NoiseSchedule.timestep_of(self, sigma)
        wanted = torch.as_tensor(sigma, dtype=torch.float64).clamp(1e-6, 1 - 1e-9)
        return (wanted / (1 - wanted**2).sqrt()).log() / 4

    def levels(self, num_steps: int, *, seq_len: int | None = None, mu: float | None = None) -> Levels:
        """Return the levels of the scheduler's `num_steps` steps.

        Each step leads to where the next one begins. (Where the steps do not divide the trained timesteps, diffusers'
        DDIM and PNDM aim a little beside that.)

        Args:
            seq_len: tokens of the latents, by which a dynamic shift goes.
            mu: that shift itself, for models that do not derive it from the length.

        Raises:
            UsageError: the scheduler has no such number of steps, or they do not end near clean.
            CheckpointError: its shift is dynamic, and neither `mu` nor what it follows from is known.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        name = type(self.scheduler).__name__
        settings: dict[str, Any] = {"num_inference_steps": num_steps}
        if self.scheduler.config.get("use_dynamic_shifting"):
            settings["mu"] = self._mu(seq_len) if mu is None else mu
        if self.is_even:
            settings["sigmas"] = np.linspace(1, 1 / num_steps, num_steps)
        try:
            asked = copy.deepcopy(self.scheduler)  # `set_timesteps` leaves its marks
            if name == "PNDMScheduler":  # Runge-Kutta's first steps have levels inside, and need more than three steps
                asked.register_to_config(skip_prk_steps=True)
            asked.set_timesteps(**settings)
            return self._read(asked, num_steps)
        except LatentVidError:
            raise
        except Exception as error:  # diffusers has many
            raise UsageError(f"{name} has no schedule of {num_steps} steps: {_first_line(error)}.") from error

    def _mu(self, seq_len: int | None) -> float:
        """Return the shift by the number of tokens, a line through two points, as diffusers' pipelines compute it."""
        config = self.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        short, long, low, high = (config.get(name) for name in names)
        if seq_len is None or short is None or long is None or low is None or high is None or short == long:
            raise CheckpointError(
                f"{type(self.scheduler).__name__} shifts by the latents' length, which needs `seq_len` and two points"
                " in its config, or `mu`."
            )
        return float(low + (high - low) * (seq_len - short) / (long - short))

    def _read(self, asked: Any, num_steps: int) -> Levels:
        """Return the levels of a scheduler whose timesteps are set."""
        name = type(asked).__name__
        if name in INDEXED:
            timestep = asked.timesteps.double()
            if name == "PNDMScheduler":
                timestep = timestep.unique_consecutive()  # one is listed twice
            timestep = timestep[timestep >= 0]  # rounding may let "trailing" timesteps run to -1, one too many
            alpha, sigma = self._indexed(name, timestep)
        else:
            timestep, noise = asked.timesteps.double(), asked.sigmas.double()
            if name in DOUBLED:
                timestep, noise = timestep[::2], torch.cat([noise[::2][: (len(timestep) + 1) // 2], noise[-1:]])
            if len(timestep) == num_steps + 1 and timestep[-1] < 0 and not self.is_continuous:
                timestep, noise = timestep[:-1], torch.cat([noise[:-2], noise[-1:]])
            noise = noise[: len(timestep) + 1]
            if self.kind == "flow":
                alpha, sigma = 1 - noise, noise
            else:
                alpha, sigma = _variance_preserving(noise)
        if len(timestep) != num_steps:
            raise UsageError(f"{name} has {len(timestep)} steps where {num_steps} were asked for; take another number.")
        last = torch.zeros(1, dtype=torch.float64) if sigma[-1] == 0 else self.timestep_of(sigma[-1:])
        alpha = torch.where(alpha.abs() < 1e-8, torch.zeros_like(alpha), alpha)
        return Levels(alpha, sigma, torch.cat([timestep, last]))

    def _indexed(self, name: str, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, [n+1], at timesteps [n] and where the last step leads to."""
        assert self.alphas_cumprod is not None
        if name == "TCDScheduler":  # its last step leads to the first trained level
            end = self.alphas_cumprod[:1]
        else:  # DDPM's always to clean
            end = torch.as_tensor(getattr(self.scheduler, "final_alpha_cumprod", 1.0)).double().reshape(1)
        kept = torch.cat([self.alphas_cumprod[timestep.long()], end])
        return kept.sqrt(), (1 - kept).sqrt()


def build_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Build a diffusers scheduler from its class's name and its config.

    Raises:
        CheckpointError: the class is not in the table, or does not take the config.
    """
    _check_name(name)
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{name}: its config is no table.")
    steps = config.get("num_train_timesteps", 1000)
    most = 10_000 if name in DOUBLED else 1_000_000  # whose constructors take time with the square of it
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise CheckpointError(f"scheduler config: num_train_timesteps={steps!r} is out of range.")
    try:
        return SCHEDULERS.get(name).from_config(dict(config))
    except Exception as error:  # diffusers has many
        raise CheckpointError(f"{name} does not take its config: {_first_line(error)}.") from error


def schedule_of(scheduler: Any, spacing: Spacing = "scheduler") -> NoiseSchedule:
    """Return the levels of a diffusers scheduler object.

    Raises:
        CheckpointError: a scheduler, or a setting of it, whose levels are not known.
        UsageError: an unknown spacing.
    """
    if spacing not in get_args(Spacing):
        raise UsageError(f"spacing={spacing!r} is not known; known: {', '.join(get_args(Spacing))}.")
    name = type(scheduler).__name__
    _check_name(name)
    if not isinstance(scheduler, SCHEDULERS.get(name)):
        raise CheckpointError(f"{name} of {type(scheduler).__module__} is not diffusers' scheduler of that name.")
    config = scheduler.config
    if spacing == "even" and not _is_reshaped_flow(name, config):
        return NoiseSchedule.from_config({**config, "_class_name": name})
    for setting in ("invert_sigmas", "stochastic_sampling"):
        if config.get(setting):
            raise CheckpointError(f"{name}: {setting} is not supported; set it to false if the model allows.")
    steps = int(config.num_train_timesteps)
    is_dynamic = bool(config.get("use_dynamic_shifting"))
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        shift = scheduler.shift if name.startswith("FlowMatch") else config.flow_shift
        if not is_dynamic and not (isinstance(shift, int | float) and math.isfinite(shift) and shift > 0):
            raise CheckpointError(f"{name}: the shift {shift!r} is no positive number.")
        prediction = "flow" if name.startswith("FlowMatch") else _prediction_type(name, config, "flow")
        # diffusers' pipelines of models with a dynamic shift (LTX) hand even sigmas to the scheduler.
        is_even = spacing == "even" or (name == "FlowMatchEulerDiscreteScheduler" and is_dynamic)
        return SchedulerSchedule(
            "flow", steps, None, 1.0 if is_dynamic else float(shift), prediction, scheduler=scheduler, is_even=is_even
        )
    kept = scheduler.alphas_cumprod.double()
    if len(kept) != steps or not ((kept >= 0) & (kept <= 1)).all() or not (kept.diff() <= 0).all():
        raise CheckpointError(f"{name}: its betas do not make {steps} levels of growing noise.")
    prediction = _prediction_type(name, config, "vp")
    is_continuous = config.get("timestep_type") == "continuous" and prediction == "v_prediction"
    return SchedulerSchedule(
        "vp", steps, kept, prediction_type=prediction, scheduler=scheduler, is_continuous=is_continuous
    )


def _check_name(name: str) -> None:
    if name in REFUSED:
        raise CheckpointError(f"{name} cannot be used: {REFUSED[name]}.")
    if name not in SCHEDULERS:
        raise CheckpointError(f"scheduler {name!r} is not known{did_you_mean(name, SCHEDULERS)}.")


def _is_reshaped_flow(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a flow scheduler does more to even steps than to shift them by a constant."""
    further = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas")
    return name == "FlowMatchEulerDiscreteScheduler" and any(
        config.get(setting) for setting in (*further, "use_beta_sigmas", "invert_sigmas", "stochastic_sampling")
    )


def _prediction_type(name: str, config: Mapping[str, Any], kind: str) -> str:
    given, known = config.get("prediction_type"), PREDICTION_TYPES[kind]
    if given not in known:
        raise CheckpointError(
            f"{name}: prediction type {given!r} has no meaning for {kind} noise; known: {', '.join(known)}."
        )
    return known[str(given)]


def _variance_preserving(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, whose squares add up to 1, from their ratio sigma / alpha."""
    alpha = 1 / (1 + noise**2).sqrt()
    return alpha, noise * alpha


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
