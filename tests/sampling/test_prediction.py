"""Prediction types lead to the clip that they were made from."""

from __future__ import annotations

import pytest
import torch

from latentvid.core.errors import CheckpointError
from latentvid.core.levels import Level
from latentvid.sampling.prediction import PREDICTION_TYPES, eps_of, noisy, target, to_clean

CLEAN, EPS = torch.randn(2, 2, 3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def level(alpha: float, sigma: float) -> Level:
    return Level(torch.tensor(alpha), torch.tensor(sigma), torch.tensor(500.0))


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (0.3, 0.7), (1.0, 0.0), (0.01, 0.99)])
def test_the_target_leads_back_to_the_clip(kind: str, alpha: float, sigma: float) -> None:
    at = level(alpha, sigma)
    clean = to_clean(target(CLEAN, EPS, at, kind), noisy(CLEAN, EPS, at), at, kind)
    torch.testing.assert_close(clean, CLEAN)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_levels_may_differ_by_frame(kind: str) -> None:
    alpha = torch.tensor([[1.0, 0.6, 0.3, 0.1], [0.9, 0.8, 0.7, 0.6]], dtype=torch.float64)
    at = Level(alpha, (1 - alpha**2).sqrt(), 1000 * alpha)
    x = noisy(CLEAN, EPS, at)
    torch.testing.assert_close(x[:, :, 0], torch.stack([CLEAN[0, :, 0], x[1, :, 0]]))
    torch.testing.assert_close(to_clean(target(CLEAN, EPS, at, kind), x, at, kind), CLEAN)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])
def test_pure_noise_is_no_obstacle(kind: str) -> None:
    at = level(0.0, 1.0)
    torch.testing.assert_close(to_clean(target(CLEAN, EPS, at, kind), EPS, at, kind), CLEAN)


def test_epsilon_cannot_start_from_pure_noise() -> None:
    with pytest.raises(CheckpointError, match="epsilon cannot start from pure noise"):
        to_clean(EPS, EPS, level(0.0, 1.0), "epsilon")


def test_signs_are_those_of_the_field() -> None:
    at = level(0.6, 0.8)
    torch.testing.assert_close(target(CLEAN, EPS, at, "v_prediction"), 0.6 * EPS - 0.8 * CLEAN)
    torch.testing.assert_close(target(CLEAN, EPS, at, "flow"), EPS - CLEAN)


def test_the_noise_estimate() -> None:
    torch.testing.assert_close(eps_of(noisy(CLEAN, EPS, level(0.6, 0.8)), CLEAN, level(0.6, 0.8)), EPS)
    assert not eps_of(CLEAN, CLEAN, level(1.0, 0.0)).any()


def test_unknown_types_are_refused() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'epsilon'"):
        to_clean(EPS, EPS, level(0.6, 0.8), "epsilom")
    with pytest.raises(CheckpointError, match="not known"):
        target(CLEAN, EPS, level(0.6, 0.8), "velocity")
