"""Classifier-free guidance on estimates that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.core.levels import Level
from latentvid.sampling.guidance import classifier_free, classifier_free_batched
from latentvid.sampling.solver import Denoise

X = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
LEVEL = Level(torch.tensor(0.6), torch.tensor(0.8), torch.tensor(500.0))


def conditional(x: Tensor, level: Level) -> Tensor:
    return 2 * x + level.timestep


def unconditional(x: Tensor, level: Level) -> Tensor:
    return x.cos()


def forbidden(x: Tensor, level: Level) -> Tensor:
    raise AssertionError("this call is wasted")


def both(x: Tensor, level: Level) -> Tensor:
    if level.alpha.ndim:
        assert len(level.alpha) == len(x)
    first, second = x.chunk(2)
    return torch.cat([conditional(first, LEVEL), unconditional(second, LEVEL)])


def test_the_formula_and_its_ends() -> None:
    guided = lambda scale: classifier_free(conditional, unconditional, scale)(X, LEVEL)  # noqa: E731
    c, u = conditional(X, LEVEL), unconditional(X, LEVEL)
    torch.testing.assert_close(guided(7.5), u + 7.5 * (c - u))
    torch.testing.assert_close(guided(0), u)
    assert torch.equal(classifier_free(conditional, forbidden, 1)(X, LEVEL), c)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_call_of_twice_the_batch_is_the_same(rescale: float) -> None:
    two = classifier_free(conditional, unconditional, 3.0, rescale=rescale)
    one = classifier_free_batched(conditional, both, 3.0, rescale=rescale)
    torch.testing.assert_close(one(X, LEVEL), two(X, LEVEL))
    torch.testing.assert_close(one(X, LEVEL.per_frame(2, 4)), two(X, LEVEL))
    assert torch.equal(classifier_free_batched(conditional, forbidden, 1)(X, LEVEL), conditional(X, LEVEL))


def test_rescaling_restores_each_samples_spread() -> None:
    guided = classifier_free(conditional, unconditional, 7.5, rescale=1.0)(X, LEVEL)
    torch.testing.assert_close(guided.std((1, 2, 3, 4)), conditional(X, LEVEL).std((1, 2, 3, 4)))


@pytest.mark.parametrize(("interval", "guides"), [((0.0, 1.0), True), ((0.6, 1.0), False), ((0.5, 0.6), True)])
def test_the_interval_of_noise_that_is_guided(interval: tuple[float, float], guides: bool) -> None:
    if guides:
        guided = classifier_free(conditional, unconditional, 2.0, interval=interval)(X, LEVEL)
        torch.testing.assert_close(guided, 2 * conditional(X, LEVEL) - unconditional(X, LEVEL))
    else:
        guided = classifier_free(conditional, forbidden, 2.0, interval=interval)(X, LEVEL)
        assert torch.equal(guided, conditional(X, LEVEL))


def test_two_types_of_estimate_are_guided_alike() -> None:
    """Guiding clean estimates is guiding noise estimates: both are affine in each other at a given state."""
    a, s, scale = 0.6, 0.8, 5.0
    c, u = conditional(X, LEVEL), unconditional(X, LEVEL)
    eps = (X - a * u) / s + scale * ((X - a * c) / s - (X - a * u) / s)
    guide: Denoise = classifier_free(conditional, unconditional, scale)
    torch.testing.assert_close(guide(X, LEVEL), (X - s * eps) / a, atol=1e-2, rtol=1e-5)
