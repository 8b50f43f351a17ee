"""Laws of every registered solver, on Gaussian data whose best denoiser and exact end are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentvid.core.levels import Level, Levels
from latentvid.noise import PRIORS
from latentvid.sampling import SOLVERS
from latentvid.sampling.solver import Renoise
from tests.sampling.toys import (
    NUM_FRAMES,
    SCHEDULES,
    Schedule,
    angles,
    best_denoiser,
    data_covariance,
    factor,
    flow,
    stable_diffusion,
)

SECOND_ORDER = {"heun", "dpmpp_2m"}
DETERMINISTIC = [kind for kind in SOLVERS if kind != "ancestral"]
every_solver = pytest.mark.parametrize("kind", list(SOLVERS))
every_prior = pytest.mark.parametrize("prior_kind", list(PRIORS))


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


class Basis:
    """Start and injected noises as disjoint blocks of unit vectors along c, coloured by a frame covariance."""

    def __init__(self, num_steps: int) -> None:
        self.size = NUM_FRAMES * (num_steps + 1)

    def block(self, index: int, covariance: Tensor) -> Tensor:
        noise = torch.zeros(1, self.size, NUM_FRAMES, 1, 1, dtype=torch.float64)
        noise[0, NUM_FRAMES * index : NUM_FRAMES * (index + 1), :, 0, 0] = factor(covariance).T
        return noise

    def renoise(self, covariance: Tensor) -> Renoise:
        return lambda i: self.block(i + 1, covariance)


def sampled_error(kind: str, levels: Levels, trained: Tensor, started: Tensor, injected: Tensor) -> float:
    """Relative error of the sampled frame covariance. Sampling is linear here, so nothing is counted."""
    basis = Basis(len(levels))
    end = SOLVERS.get(kind)()(best_denoiser(trained), basis.block(0, started), levels, renoise=basis.renoise(injected))
    rows = end[0, :, :, 0, 0]
    return float((rows.T @ rows - data_covariance()).norm() / data_covariance().norm())


@every_solver
@every_prior
@every_schedule
def test_the_matched_prior_samples_the_data(kind: str, prior_kind: str, schedule: Schedule) -> None:
    cov = PRIORS.get(prior_kind)().covariance(NUM_FRAMES)
    # Euler and ancestral are of first order. Stable Diffusion's levels start at alpha = 0.07 from noise that holds
    # none of the signal, which costs up to 0.03 whatever the solver.
    assert sampled_error(kind, schedule(200), cov, cov, cov) < 0.045


@pytest.mark.parametrize("kind", sorted(SECOND_ORDER))
@every_prior
@pytest.mark.parametrize("schedule", [angles, flow])
def test_the_matched_prior_samples_the_data_closely(kind: str, prior_kind: str, schedule: Schedule) -> None:
    cov = PRIORS.get(prior_kind)().covariance(NUM_FRAMES)
    assert sampled_error(kind, schedule(200), cov, cov, cov) < 0.002


@every_solver
@pytest.mark.parametrize("prior_kind", [kind for kind in PRIORS if kind != "iid"])
@pytest.mark.parametrize("schedule", [angles, stable_diffusion])
def test_the_wrong_prior_does_not(kind: str, prior_kind: str, schedule: Schedule) -> None:
    """Guards the trap: independent noise in a model that was trained with correlated noise."""
    cov, iid = PRIORS.get(prior_kind)().covariance(NUM_FRAMES), torch.eye(NUM_FRAMES, dtype=torch.float64)
    assert sampled_error(kind, schedule(200), cov, iid, iid) > 0.3
    if kind == "ancestral":
        assert sampled_error(kind, schedule(200), cov, cov, iid) > 0.3
    else:
        assert sampled_error(kind, schedule(200), cov, iid, cov) > 0.3


@every_prior
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_any_share_of_ancestral_noise_keeps_the_law(prior_kind: str, eta: float) -> None:
    cov = PRIORS.get(prior_kind)().covariance(NUM_FRAMES)
    basis, levels = Basis(200), angles(200)
    solver = SOLVERS.get("ancestral")(eta=eta)
    rows = solver(best_denoiser(cov), basis.block(0, cov), levels, renoise=basis.renoise(cov))[0, :, :, 0, 0]
    assert (rows.T @ rows - data_covariance()).norm() < 0.05 * data_covariance().norm()


def scalar_error(kind: str, levels: Levels, spread: float) -> float:
    """Distance from the exact end of the probability flow of one Gaussian number of this standard deviation."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        a, s = level.alpha, level.sigma
        return a * spread**2 / (a**2 * spread**2 + s**2) * x

    x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    start = levels[0]
    exact = spread / (start.alpha**2 * spread**2 + start.sigma**2).sqrt()
    return abs(float(SOLVERS.get(kind)()(denoise, x, levels, renoise=lambda i: 0 * x)) - float(exact))


@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("schedule", [angles, flow])
def test_order_of_convergence(kind: str, schedule: Schedule) -> None:
    coarse, fine = (scalar_error(kind, schedule(n), spread=2.0) for n in (64, 256))
    order = math.log(coarse / fine) / math.log(4)
    # The first-order ends of DPM-Solver++(2M) cost it a logarithm: 1.75 here, rising with the steps.
    assert order == pytest.approx(2 if kind in SECOND_ORDER else 1, abs=0.3)


@pytest.mark.parametrize("kind", sorted(SECOND_ORDER))
@every_schedule
def test_second_order_pays(kind: str, schedule: Schedule) -> None:
    assert scalar_error(kind, schedule(20), spread=2.0) < scalar_error("euler", schedule(20), spread=2.0)


@every_solver
@every_schedule
def test_one_step_returns_the_estimate(kind: str, schedule: Schedule) -> None:
    x, estimate = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    end = SOLVERS.get(kind)()(lambda state, level: estimate, x, schedule(1), renoise=lambda i: torch.randn_like(x))
    torch.testing.assert_close(end, estimate, atol=0, rtol=0)


@every_solver
@every_schedule
def test_a_constant_estimate_is_reached_exactly(kind: str, schedule: Schedule) -> None:
    x, estimate = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    end = SOLVERS.get(kind)()(lambda state, level: estimate, x, schedule(9), renoise=lambda i: torch.randn_like(x))
    torch.testing.assert_close(end, estimate, atol=0, rtol=0)


@every_solver
def test_input_is_untouched_and_dtype_kept(kind: str) -> None:
    x = torch.randn(1, 2, 3, 4, 4)
    before, levels = x.clone(), angles(5)
    end = SOLVERS.get(kind)()(
        lambda state, level: (0.5 * state).bfloat16(), x, levels, renoise=lambda i: torch.zeros_like(x)
    )
    assert torch.equal(x, before)
    assert (levels.alpha == angles(5).alpha).all()
    assert end.dtype == torch.float32
    assert end.shape == x.shape


@every_solver
def test_the_denoiser_sees_the_levels_in_order(kind: str) -> None:
    seen: list[float] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        seen.append(float(level.timestep))
        return 0.5 * x

    solver, levels = SOLVERS.get(kind)(), angles(6)
    solver(denoise, torch.randn(1, 1, 1, 1, 1), levels, renoise=lambda i: torch.zeros(1, 1, 1, 1, 1))
    assert len(seen) == solver.calls_per_step * 5 + 1
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == set(levels.timestep[:-1].tolist())


@every_solver
def test_on_step_sees_and_replaces_the_state_of_every_step(kind: str) -> None:
    calls: list[int] = []
    handed: list[Tensor] = []

    def on_step(i: int, x: Tensor) -> Tensor:
        calls.append(i)
        handed.append(x + 1)
        return handed[-1]

    states: list[Tensor] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        states.append(x)
        return 0.5 * x

    solver = SOLVERS.get(kind)()
    x = torch.zeros(1, 1, 1, 1, 1)
    solver(denoise, x, angles(6), renoise=lambda i: torch.zeros_like(x), on_step=on_step)
    assert calls == list(range(6))
    for i, state in enumerate(handed):
        assert states[solver.calls_per_step * i] is state


def test_ancestral_asks_for_its_prior() -> None:
    with pytest.raises(ValueError, match="renoise"):
        SOLVERS.get("ancestral")()(lambda x, level: x, torch.zeros(1, 1, 1, 1, 1), angles(3))


@every_schedule
def test_ancestral_draws_once_in_every_step_but_the_last(schedule: Schedule) -> None:
    asked: list[int] = []

    def renoise(i: int) -> Tensor:
        asked.append(i)
        return torch.zeros(1, 1, 1, 1, 1)

    SOLVERS.get("ancestral")()(lambda x, level: 0.5 * x, torch.zeros(1, 1, 1, 1, 1), schedule(7), renoise=renoise)
    assert asked == list(range(6))


@every_schedule
def test_ancestral_without_noise_is_euler(schedule: Schedule) -> None:
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64)
    denoise = lambda state, level: level.alpha / (level.alpha**2 + 4 * level.sigma**2) * state  # noqa: E731
    ends = [
        solver(denoise, x, schedule(12), renoise=lambda i: torch.randn_like(x))
        for solver in (SOLVERS.get("ancestral")(eta=0.0), SOLVERS.get("euler")())
    ]
    torch.testing.assert_close(ends[0], ends[1])
