"""Noise, solvers and the ways that windows continue each other, on the GPU: the CPU's noise, and its latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentvid.core.levels import Level, NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.extension.guard import Statistics, bring_back
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rollout import MadeWindow, roll_out
from latentvid.extension.rules import Setting
from latentvid.film.reroll import sample_between
from latentvid.noise import PRIORS
from latentvid.noise.prior import NoisePrior
from latentvid.pipeline import Sampling, validate_rule
from latentvid.sampling import SOLVERS
from latentvid.sampling.guidance import classifier_free
from latentvid.sampling.inversion import invert
from tests.gpu.compare import EXACT, assert_near

pytestmark = pytest.mark.gpu
WINDOW, OVERLAP, STEPS = 7, 2, 6
SHAPE = LatentShape(2, 3, WINDOW, 6, 5)
RULES: dict[str, dict[str, Any]] = {
    "context": {"kind": "context", "overlap": OVERLAP, "context_sigma": 0.2},
    "chronological": {"kind": "reuse", "overlap": OVERLAP, "order": "chronological"},
    "mirror": {"kind": "reuse", "overlap": OVERLAP, "order": "mirror"},
}
SCHEDULES = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "vp": DDIMScheduler(beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=0.012),
}


def prior_of(kind: str) -> NoisePrior:
    """Return a prior whose law is the same from both ends of a window."""
    prior: NoisePrior = PRIORS.get(kind)(**({"num_frames": WINDOW} if kind == "decomposed" else {}))
    return prior


def best(x: Tensor, level: Level) -> Tensor:
    """Return the best estimate where latents are Gaussian, of spread 2 around 0.3, and what is not linear."""
    alpha, sigma = level.like(x)
    gain = 4 * alpha / (4 * alpha**2 + sigma**2)
    return 0.3 + gain * (x - 0.3 * alpha) + 0.05 * x.sin()


def setting(prior: NoisePrior, schedule: str, device: torch.device) -> Setting:
    scheduler = SCHEDULES[schedule]
    known = NoiseSchedule.from_config({**scheduler.config, "_class_name": type(scheduler).__name__})
    guided = classifier_free(best, lambda x, level: 0.9 * best(x, level), 1.5, rescale=0.5)
    return Setting(guided, prior, known, known.levels(STEPS), Rng([5, 6]), SHAPE, device)


def made(solver: str, prior: str, rule: str, schedule: str, device: torch.device) -> list[MadeWindow]:
    chosen = validate_rule(RULES[rule])
    plan = FilmPlan(3 * WINDOW - 2 * OVERLAP, WINDOW, chosen.overlap, chosen.append_overlap)
    own = setting(prior_of(prior), schedule, device)
    return list(roll_out(plan, chosen, SOLVERS.get(solver)(), lambda _: own))


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("prior", list(PRIORS))
def test_windows_are_those_of_the_cpu(solver: str, prior: str, device: torch.device) -> None:
    for rule in RULES:
        for schedule in SCHEDULES:
            what = f"{rule}, {schedule}"
            wanted, found = (made(solver, prior, rule, schedule, where) for where in (torch.device("cpu"), device))
            assert len(wanted) == len(found) >= 3
            for one, other in zip(found, wanted, strict=True):
                assert one.latents.device.type == device.type
                assert_near(one.latents, other.latents, EXACT, what)
                for name in ("noise", "trajectory"):
                    here, there = getattr(one.tail, name), getattr(other.tail, name)
                    assert (here is None) == (there is None) == (rule == "context")
                    if here is not None:
                        assert here.device.type == device.type
                        assert_near(here, there, EXACT, what)
                if one.tail.noise is not None and other.tail.noise is not None:
                    assert torch.equal(one.tail.noise.cpu(), other.tail.noise), "noise is drawn on the CPU"


@pytest.mark.parametrize("kind", list(PRIORS))
def test_noise_on_the_gpu_keeps_the_law(kind: str, device: torch.device) -> None:
    prior = prior_of(kind)
    shape = LatentShape(1, 4, WINDOW, 64, 64)
    past = prior.sample(shape.with_frames(3), rng=Rng(3), first_frame=0)
    later = [
        prior.sample(shape.with_frames(WINDOW - 3), rng=Rng(3), first_frame=3, past=where)
        for where in (past, past.to(device))
    ]
    assert torch.equal(*later)
    for noise in (prior.sample(shape, rng=Rng(3)), torch.cat([past, later[0]], dim=2)):
        there = noise.to(device).double()
        found = torch.einsum("bcthw,bcshw->ts", there, there) / there[:, :, 0].numel()
        # 16,384 draws: a standard error of at most sqrt(2 / 16384) = 0.011.
        torch.testing.assert_close(found.cpu(), prior.covariance(WINDOW), atol=0.05, rtol=0)


def test_inversion_guard_and_windows_between_others_are_those_of_the_cpu(device: torch.device) -> None:
    cpu = torch.device("cpu")
    ends: list[list[Tensor]] = []
    for where in (cpu, device):
        own = setting(prior_of("mixed"), "flow", where)
        clean = Rng([1, 2]).normal(*SHAPE.dims[1:]).to(where)
        found = [invert(best, clean, own.levels)]
        rule = validate_rule(RULES["chronological"])
        window = made("euler", "mixed", "chronological", "flow", where)[1]
        reference = Statistics.of(5 + 3 * clean)
        corrected = bring_back(window, reference, 0.3, rule=rule, levels=own.levels)
        assert corrected.is_corrected
        assert corrected.tail.trajectory is not None
        found += [corrected.latents, corrected.tail.latents, corrected.tail.trajectory]
        places = [0, 1, WINDOW - 1]
        for name in ("context", "mirror"):
            sampling = Sampling(
                STEPS, None, 0.0, SOLVERS.get("ancestral")(), validate_rule(RULES[name]), own.rng, SHAPE
            )
            found.append(sample_between(own, sampling, FilmPlan(WINDOW, WINDOW, 2)[0], clean[:, :, places], places))
        ends.append(found)
    for one, other in zip(*ends, strict=True):
        assert other.device.type == device.type
        assert_near(other, one, EXACT)
