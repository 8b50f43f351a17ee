"""Levels asked of diffusers' schedulers are the levels that diffusers itself puts networks and states at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.levels import Level, NoiseSchedule
from latentvid.sampling import SOLVERS
from latentvid.sampling.euler import Euler
from latentvid.sampling.prediction import to_clean
from latentvid.sampling.schedule import REFUSED, SCHEDULERS, build_scheduler, schedule_of
from latentvid.sampling.solver import ddim
from tests import factories

STEPS = (4, 10, 50)
SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
V: dict[str, Any] = {**SD, "prediction_type": "v_prediction"}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
LTX: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
SVD: dict[str, Any] = {
    **V,
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
KINDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPACINGS = ("leading", "linspace", "trailing")

# Class and config, of which most are made by first-order steps in diffusers too, with arguments that make them so.
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("DDIMScheduler", {**SD, "timestep_spacing": s, "clip_sample": False}) for s in SPACINGS),
    ("DDIMScheduler", {**SD, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    ("DDIMScheduler", {**SD, "set_alpha_to_one": False, "clip_sample": False}),
    ("DDIMScheduler", {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}),
    ("DDIMScheduler", {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(), "clip_sample": False}),
    *(("DDPMScheduler", {"beta_schedule": b}) for b in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"}),
    ("PNDMScheduler", {**SD}),
    ("TCDScheduler", {**SD, "timestep_spacing": "trailing"}),
    *(
        (f"CogVideoX{name}Scheduler", {"prediction_type": "v_prediction", "snr_shift_scale": scale, **more})
        for name in ("DDIM", "DPM")
        for scale, more in ((3.0, {}), (1.0, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}))
    ),
    *(
        (name, {**SD, "timestep_spacing": s, "steps_offset": 1})
        for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler")
        for s in SPACINGS
    ),
    *(
        (name, {**SD, kind: True})
        for name in (
            "EulerDiscreteScheduler",
            "LMSDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "DEISMultistepScheduler",
            "UniPCMultistepScheduler",
        )
        for kind in KINDS
    ),
    ("EulerDiscreteScheduler", {**SD, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {**SD, "interpolation_type": "log_linear"}),
    ("EulerDiscreteScheduler", {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", SVD),
    *(
        (name, {**SD, "timestep_spacing": s})
        for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
        for s in SPACINGS
    ),
    *(
        (name, {**SD, "timestep_spacing": s, "final_sigmas_type": end})
        for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
        for s, end in zip(SPACINGS, ("zero", "sigma_min", "zero"), strict=True)
    ),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}),
    ("DPMSolverSinglestepScheduler", {**SD}),
    ("DEISMultistepScheduler", {**SD, "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverSinglestepScheduler", FLOW),
    ("UniPCMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", {**FLOW, "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 5.0, "shift_terminal": 0.02}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
    ("FlowMatchEulerDiscreteScheduler", LTX),
    ("FlowMatchEulerDiscreteScheduler", {**LTX, "time_shift_type": "linear", "shift_terminal": None}),
    *(("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, kind: True}) for kind in KINDS),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
]
FIRST_ORDER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DDIMScheduler": ({}, {}),
    "TCDScheduler": ({}, {"eta": 0.0}),
    "CogVideoXDDIMScheduler": ({}, {}),
    "EulerDiscreteScheduler": ({}, {}),
    "LMSDiscreteScheduler": ({}, {"order": 1}),
    "DPMSolverMultistepScheduler": ({"solver_order": 1}, {}),
    "DPMSolverSinglestepScheduler": ({"solver_order": 1}, {}),
    "DEISMultistepScheduler": ({"solver_order": 1}, {}),
    "UniPCMultistepScheduler": ({"solver_order": 1, "disable_corrector": list(range(50))}, {}),
    "FlowMatchEulerDiscreteScheduler": ({}, {}),
}
"""Schedulers that can take Euler's (DDIM's) steps: further settings, and arguments of `step`."""
SEQ_LEN = 4096


def name_of(case: Any) -> str:
    return case if isinstance(case, str) else json.dumps(case)[:60]


def set_timesteps(scheduler: Any, num_steps: int) -> Any:
    """Do what diffusers' pipelines do."""
    if scheduler.config.get("use_dynamic_shifting"):
        mu = scheduler.config.max_shift  # at the longest of the lengths
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    else:
        scheduler.set_timesteps(num_steps)
    return scheduler


def seen_by_network(scheduler: Any, timestep: Tensor, clean: float, noise: float) -> float:
    """Return the network's input at one of diffusers' timesteps, for a clip and a noise of one number."""
    scheduler._step_index = None
    sample, eps, at = (torch.tensor([v], dtype=torch.float64) for v in (clean, noise, 0))
    at = timestep.reshape(1)
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(sample, at, eps))
    noisy = scheduler.add_noise(sample, eps, at)
    return float(scheduler.scale_model_input(noisy, timestep))


@pytest.mark.parametrize(("name", "config"), CASES, ids=name_of)
def test_levels_are_those_of_diffusers(name: str, config: dict[str, Any]) -> None:
    for num_steps in STEPS:
        scheduler = build_scheduler(name, config)
        schedule = schedule_of(scheduler)
        levels = schedule.levels(num_steps, seq_len=SEQ_LEN)
        assert len(levels) == num_steps
        set_timesteps(scheduler, num_steps)
        steps = scheduler.timesteps
        if name == "PNDMScheduler":  # which lists one twice, and lists the middles of Runge-Kutta's steps
            steps = steps.unique().flip(0) if scheduler.config.skip_prk_steps else levels.timestep[:-1].long()
            assert set(steps.tolist()) <= set(scheduler.timesteps.tolist())
        elif getattr(scheduler, "order", 1) == 2 and len(steps) != num_steps:
            steps = steps[::2]
        assert levels.timestep[:-1].tolist() == steps.double().tolist()
        if len(set(steps.tolist())) < num_steps:
            continue  # rounded timesteps do not name a level
        for i in sorted({*range(0, num_steps, -(-num_steps // 8)), num_steps - 1}):
            step = steps[i]
            seen = [seen_by_network(scheduler, step, clean, 1 - clean) for clean in (1.0, 0.0)]
            torch.testing.assert_close(
                torch.stack([levels.alpha[i], levels.sigma[i]]), torch.tensor(seen).double(), rtol=2e-5, atol=2e-6
            )


@pytest.mark.parametrize(("name", "config"), [case for case in CASES if case[0] in FIRST_ORDER], ids=name_of)
def test_eulers_walk_is_diffusers_own(name: str, config: dict[str, Any]) -> None:
    """Levels, prediction type and end together: both walks end at the same latents."""
    if config.get("timestep_spacing") == "linspace" and name == "DDIMScheduler":
        pytest.skip("there diffusers' DDIM does not step to where its next step begins")
    settings, arguments = FIRST_ORDER[name]
    for num_steps in STEPS:
        scheduler = build_scheduler(name, {**config, **settings})
        schedule = schedule_of(scheduler)
        levels = schedule.levels(num_steps, seq_len=SEQ_LEN)
        start = torch.randn(1, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = Euler()(denoiser(schedule), start, levels)

        set_timesteps(scheduler, num_steps)
        x = start
        if name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler"):  # states there are clean + sigma * eps
            x = start / levels.alpha[0]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else repeated (rounded) timesteps make it begin late
        for i, timestep in enumerate(scheduler.timesteps):
            seen = x if name.startswith("FlowMatch") else scheduler.scale_model_input(x, timestep)
            x = scheduler.step(network(seen, levels.timestep[i]), timestep, x, **arguments)[0].double()
        if scheduler.__class__.__name__ in ("EulerDiscreteScheduler", "LMSDiscreteScheduler"):
            x = x * levels.alpha[-1]
        torch.testing.assert_close(ours, x, rtol=1e-4, atol=2e-5)


def network(x: Tensor, timestep: Tensor) -> Tensor:
    return 0.5 * torch.tanh(x + torch.sin(0.01 * timestep))


def denoiser(schedule: NoiseSchedule) -> Any:
    def denoise(x: Tensor, level: Level) -> Tensor:
        return to_clean(network(x, level.timestep), x, level, schedule.prediction_type)

    return denoise


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {**SD, "clip_sample": False}),
        ("EulerDiscreteScheduler", SD),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_one_step_is_diffusers_own(name: str, config: dict[str, Any]) -> None:
    for num_steps in STEPS:
        scheduler = set_timesteps(build_scheduler(name, config), num_steps)
        schedule = schedule_of(scheduler)
        levels = schedule.levels(num_steps)
        x = torch.randn(1, 2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        now, then, timestep = levels[num_steps // 2], levels[num_steps // 2 + 1], scheduler.timesteps[num_steps // 2]
        is_scaled = name == "EulerDiscreteScheduler"  # states there are clean + sigma * eps
        state = x / now.alpha if is_scaled else x
        if is_scaled:
            torch.testing.assert_close(scheduler.scale_model_input(state, timestep), x)
        theirs = scheduler.step(network(x, now.timestep), timestep, state)[0].double()
        ours = ddim(x, denoiser(schedule)(x, now), now, then)
        torch.testing.assert_close(ours, theirs * then.alpha if is_scaled else theirs, rtol=1e-6, atol=1e-6)


def test_an_ltx_schedule_is_that_of_its_pipeline() -> None:
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler(**LTX))
    assert schedule.levels(4, seq_len=4096).sigma.tolist() == pytest.approx([1, 0.867, 0.632, 0.1, 0], abs=1e-3)
    assert torch.equal(schedule.levels(4, seq_len=4096).sigma, schedule.levels(4, mu=2.05).sigma)
    assert not torch.equal(schedule.levels(4, seq_len=1024).sigma, schedule.levels(4, seq_len=4096).sigma)
    with pytest.raises(CheckpointError, match="mu"):
        schedule.levels(4)


@pytest.mark.parametrize(
    ("config", "alphas"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, [0, 0.1, 0.25, 0.5, 1]),
        ({"_class_name": "DDIMScheduler", **SD}, [0.0682649, 0.2379569, 0.5269437, 0.8218470, 1]),
    ],
)
def test_even_spacing_is_what_models_of_ours_were_sampled_with(config: dict[str, Any], alphas: list[float]) -> None:
    """Bit for bit: the same arithmetic in float64, from the first timestep's level to clean."""
    scheduler = build_scheduler(config["_class_name"], config)
    schedule = schedule_of(scheduler, "even")
    assert type(schedule) is NoiseSchedule
    levels = schedule.levels(4, seq_len=7)
    assert levels.alpha.tolist() == pytest.approx(alphas, abs=1e-6)
    if schedule.kind == "flow":
        even = torch.linspace(1, 0, 5, dtype=torch.float64)
        assert torch.equal(levels.sigma, 3.0 * even / (1 + 2.0 * even))
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))  # as diffusers' pipelines of HunyuanVideo do
        torch.testing.assert_close(levels.sigma.float(), scheduler.sigmas)
    else:
        betas = torch.linspace(8.5e-4**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, dim=0)[[999, 749, 499, 249]]
        assert torch.equal(levels.alpha[:-1], kept.sqrt())
        assert torch.equal(levels.sigma[:-1], (1 - kept).sqrt())
    # A shift by the length goes through the scheduler, whatever the spacing.
    ltx = FlowMatchEulerDiscreteScheduler(**LTX)
    assert torch.equal(schedule_of(ltx, "even").levels(4, mu=2.05).sigma, schedule_of(ltx).levels(4, mu=2.05).sigma)


@pytest.mark.parametrize(("name", "config"), CASES, ids=name_of)
def test_timesteps_and_noise_lead_to_each_other(name: str, config: dict[str, Any]) -> None:
    """The training-time half: the levels of timesteps, and the timesteps of levels."""
    scheduler = build_scheduler(name, config)
    schedule = schedule_of(scheduler)
    timestep = torch.tensor([[1.0, 200.0], [500.0, 900.0]])
    if schedule.is_continuous:
        timestep = (torch.tensor([[0.1, 1.0], [7.0, 30.0]]).double().log() / 4).float()
    level = schedule.level(timestep)
    assert (level.alpha.shape, level.alpha.dtype) == (timestep.shape, torch.float64)
    assert (level.alpha.flatten().diff() < 0).all()
    torch.testing.assert_close(schedule.timestep_of(level.sigma), timestep.double(), rtol=1e-4, atol=1e-9)
    if schedule.kind == "vp":
        torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha))
        if not schedule.is_continuous:
            kept = scheduler.alphas_cumprod.double()[timestep.long()]
            torch.testing.assert_close(level.alpha**2, kept)
    else:
        assert (level.alpha + level.sigma == 1).all()
    before, timesteps = dict(scheduler.config), scheduler.timesteps
    schedule.levels(3, seq_len=SEQ_LEN)
    assert dict(scheduler.config) == before
    assert scheduler.timesteps is timesteps


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        *((name, {}, "cannot be used: ") for name in REFUSED),
        ("ConsistencyDecoderScheduler", {}, "is not known"),
        ("os.system", {}, "is not known"),
        ("DDIMScheduler", {"num_train_timesteps": 10**9}, "out of range"),
        ("DDIMScheduler", {"num_train_timesteps": True}, "out of range"),
        ("KDPM2DiscreteScheduler", {"num_train_timesteps": 10**6}, "out of range"),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "does not take its config"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "1000 levels"),
        ("DDIMScheduler", {"beta_start": -0.5, "beta_end": 0.1}, "1000 levels"),
        ("DDIMScheduler", {"beta_start": 1e-4, "beta_end": float("nan")}, "1000 levels"),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "prediction type"),
        ("DDPMScheduler", {"prediction_type": "score"}, "prediction type"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction type"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "prediction type"),
        ("UniPCMultistepScheduler", {**FLOW, "prediction_type": "v_prediction"}, "prediction type"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0.0}, "shift"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": float("inf")}, "shift"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling"),
        ("FlowMatchEulerDiscreteScheduler", {"time_shift_type": "cubic"}, "does not take its config"),
    ],
    ids=name_of,
)
def test_what_is_not_known_is_refused(name: str, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as refusal:
        schedule_of(build_scheduler(name, config))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "config", "num_steps"),
    [
        ("DDIMScheduler", SD, 1001),
        ("UniPCMultistepScheduler", {**SD, "timestep_spacing": "leading"}, 1000),
        ("UniPCMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}, 4),  # ends at half the noise
        ("DEISMultistepScheduler", FLOW, 4),
        ("DPMSolverMultistepScheduler", {**FLOW, "use_karras_sigmas": True}, 4),  # sigmas far above 1
        ("DPMSolverMultistepScheduler", {**FLOW, "use_dynamic_shifting": True, "base_shift": 1.0}, 4),
    ],
    ids=name_of,
)
def test_steps_that_a_scheduler_does_not_have_are_refused(name: str, config: dict[str, Any], num_steps: int) -> None:
    with pytest.raises((UsageError, CheckpointError), match=name) as refusal:
        schedule_of(build_scheduler(name, config)).levels(num_steps)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_has_levels(name: str, spacing: str) -> None:
    """Rounding puts one timestep too many, or twice the same, into some of diffusers' grids."""
    schedule = schedule_of(build_scheduler(name, {**SD, "timestep_spacing": spacing}))
    for num_steps in range(1, 100):
        assert len(schedule.levels(num_steps)) == num_steps


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "ancestral"])
def test_solvers_end_where_the_schedule_ends(solver: str) -> None:
    """At the first trained level, where Stable Diffusion's schedulers end: noise of 0.03, no NaN, no further call."""
    schedule = schedule_of(build_scheduler("DDIMScheduler", {**SD, "set_alpha_to_one": False}))
    levels, calls = schedule.levels(5), []  # without an offset, whose last step leads from that level to itself
    assert levels.sigma[-1] == levels.sigma[-2] > 0
    clean, eps = (torch.randn(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))

    def denoise(x: Tensor, level: Level) -> Tensor:
        calls.append(level)
        return clean

    walk = SOLVERS.get(solver)()
    end = walk(denoise, eps, levels, renoise=lambda i: eps)
    assert len(calls) == walk.calls_per_step * 4 + 1
    assert float((end - clean).abs().max()) < 0.1 * float(eps.abs().max())


def test_a_scheduler_made_in_memory_keeps_its_meaning_when_saved(tmp_path: Path) -> None:
    # A config gets its class only when it is saved; read without it, a flow model once trained as epsilon.
    pipeline = factories.pipeline()
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=2.0), DDIMScheduler(**SD)):
        for spacing in ("even", "scheduler"):
            pipeline.register_modules(scheduler=scheduler)
            pipeline.register_to_config(spacing=spacing)
            before = pipeline.schedule
            scheduler.save_pretrained(tmp_path)
            pipeline.register_modules(scheduler=type(scheduler).from_pretrained(tmp_path))
            after = pipeline.schedule
            assert (before.kind, before.prediction_type, before.shift) == (
                after.kind,
                after.prediction_type,
                after.shift,
            )
            assert torch.equal(before.levels(7).sigma, after.levels(7).sigma)


def test_a_config_without_its_class_or_beyond_even_spacing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="names no class"):
        NoiseSchedule.from_config(dict(FlowMatchEulerDiscreteScheduler(shift=2.0).config))
    for name, config in (
        ("UniPCMultistepScheduler", FLOW),
        ("CogVideoXDDIMScheduler", {}),
        ("DPMSolverMultistepScheduler", FLOW),
        ("EulerDiscreteScheduler", SVD),
    ):
        with pytest.raises(CheckpointError, match="even spacing"):
            schedule_of(build_scheduler(name, config), "even")
    with pytest.raises(UsageError, match="spacing='odd'"):
        schedule_of(FlowMatchEulerDiscreteScheduler(), "odd")  # type: ignore[arg-type]


def test_the_table_is_all_tried() -> None:
    assert {name for name, _ in CASES} == set(SCHEDULERS)
