"""What single noise priors promise beyond the laws of all."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.decomposed import DecomposedNoise
from latentvid.noise.gaussian import cholesky, conditional
from latentvid.noise.iid import IidNoise
from latentvid.noise.mixed import MixedNoise
from latentvid.noise.progressive import ProgressiveNoise
from latentvid.noise.reuse import recycle, reuse_noise
from tests.noise.basis import BasisRng, covariance_of

SHAPE = LatentShape(1, 4, 8, 32, 32)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("prior_class", [MixedNoise, ProgressiveNoise])
def test_the_papers_numbers_are_variances(prior_class: type, alpha: float) -> None:
    """Taken for standard deviations they leave a variance of 0.37 to 0.80 in the last of eight frames."""
    last = prior_class(alpha).sample(SHAPE, rng=Rng(0))[:, :, -1]
    assert last.var() == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize(
    ("alpha", "mixed", "progressive"), [(0.5, 0.200, 0.447), (1, 0.5, 0.707), (1.5, 0.692, 0.832), (2, 0.8, 0.894)]
)
def test_correlations_equal_the_published_table(alpha: float, mixed: float, progressive: float) -> None:
    assert MixedNoise(alpha).correlation == pytest.approx(mixed, abs=5e-4)
    assert ProgressiveNoise(alpha).correlation == pytest.approx(progressive, abs=5e-4)


def test_videofusions_correlations() -> None:
    cov = DecomposedNoise().covariance(16)
    assert cov[0, 1] == pytest.approx(0.5)
    assert cov[0, 7] == pytest.approx(0.5**0.5)  # the paper's frame 8, counted from one


def test_decomposed_noise_comes_apart_and_together() -> None:
    prior = DecomposedNoise(num_frames=8)
    parts = prior.parts(SHAPE, rng=Rng(1))
    assert torch.equal(parts.noise, prior.sample(SHAPE, rng=Rng(1)))
    assert torch.equal(parts.noise[:, :, 3], parts.base[:, :, 0])
    assert parts.residual.shape == SHAPE.dims


def test_one_lambda_without_a_base_frame_is_mixed_noise() -> None:
    decomposed, mixed = DecomposedNoise(0.5, base_frame=None), MixedNoise(1.0)
    torch.testing.assert_close(decomposed.covariance(9), mixed.covariance(9))
    torch.testing.assert_close(decomposed.sample(SHAPE, rng=Rng(1)), mixed.sample(SHAPE, rng=Rng(1)))


def test_a_singular_past_is_conditioned_on() -> None:
    """Two base frames in one clip carry the same noise, so the past covariance has no inverse."""
    prior, rng = DecomposedNoise(num_frames=2, base_frame=1), BasisRng(32)
    shape = LatentShape(1, rng.size, 4, 1, 1)
    past = prior.sample(shape, rng=rng)
    new = prior.sample(shape, rng=rng, first_frame=4, past=past)
    torch.testing.assert_close(new[:, :, 1], past[:, :, 1])
    torch.testing.assert_close(covariance_of(torch.cat([past, new], dim=2)), prior.covariance(8), atol=1e-6, rtol=0)


def test_conditional_without_a_past_is_the_law_itself() -> None:
    cov = ProgressiveNoise().covariance(5)
    mean_weights, factor = conditional(cov, 0)
    assert mean_weights.shape == (5, 0)
    torch.testing.assert_close(factor @ factor.T, cov)
    assert torch.equal(factor, factor.tril())


def test_cholesky_takes_singular_matrices() -> None:
    ones = torch.ones(4, 4, dtype=torch.float64)
    factor = cholesky(ones)
    torch.testing.assert_close(factor @ factor.T, ones)


def test_recycling_independent_noise_is_vidrds_formula() -> None:
    reused, alpha = IidNoise().sample(SHAPE, rng=Rng(0)), 4.0
    noise = recycle(reused, prior=IidNoise(), num_prompt_frames=3, alpha=alpha, rng=Rng(0), first_frame=8)
    fresh = IidNoise().sample(SHAPE.with_frames(5), rng=Rng(0), first_frame=11)
    root = math.sqrt(1 + alpha**2)
    torch.testing.assert_close(noise[:, :, 3:], alpha / root * reused[:, :, 3:] + fresh / root)


@pytest.mark.parametrize(("prior", "expected"), [(MixedNoise(1.0), 0.256), (ProgressiveNoise(2.0), 0.292)])
def test_vidrds_formula_alone_breaks_a_correlated_law(prior: MixedNoise, expected: float) -> None:
    """The trap that `recycle` is for: the published errors of the plain formula at alpha = 1, half of 8 reused."""
    cov, rho = prior.covariance(8), 0.5**0.5
    keep = torch.diag(torch.tensor([1.0] * 4 + [rho] * 4, dtype=torch.float64))
    plain = keep @ cov @ keep + torch.diag(torch.tensor([0.0] * 4 + [0.5] * 4, dtype=torch.float64))
    assert (plain - cov).norm() / cov.norm() == pytest.approx(expected, abs=0.005)


def test_mirror_keeps_the_correlation_with_the_old_noise() -> None:
    previous = IidNoise().sample(SHAPE, rng=Rng(0))
    noise = reuse_noise(previous, order="mirror", overlap=4, alpha=4, prior=IidNoise(), rng=Rng(0), first_frame=4)
    assert torch.equal(noise[:, :, 0], previous[:, :, 7])
    pair = torch.stack([noise[:, :, 4:], previous.flip(2)[:, :, 4:]]).flatten(1)
    assert torch.corrcoef(pair)[0, 1] == pytest.approx(0.970, abs=0.005)


def test_chronological_noise_is_that_of_one_long_draw() -> None:
    prior = ProgressiveNoise()
    film = prior.sample(SHAPE.with_frames(20), rng=Rng(0))
    noise = reuse_noise(
        film[:, :, :8], order="chronological", overlap=2, alpha=4, prior=prior, rng=Rng(0), first_frame=6
    )
    torch.testing.assert_close(noise, film[:, :, 6:14])


def test_reuse_refuses_what_does_not_keep_the_law() -> None:
    even, odd = DecomposedNoise(num_frames=8), DecomposedNoise(num_frames=9)
    previous = even.sample(SHAPE, rng=Rng(0))
    common = {"alpha": 4.0, "rng": Rng(0), "first_frame": 4}
    with pytest.raises(UsageError, match="mirror reuse does not keep the law"):
        reuse_noise(previous, order="mirror", overlap=4, prior=even, **common)
    with pytest.raises(UsageError, match="chronological reuse"):
        reuse_noise(previous, order="chronological", overlap=6, prior=even, **common)
    reuse_noise(previous, order="chronological", overlap=3, prior=even, **common)
    nine = odd.sample(SHAPE.with_frames(9), rng=Rng(0))
    reuse_noise(nine, order="mirror", overlap=4, prior=odd, **common)


def test_bad_values_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="alpha"):
        MixedNoise(-1)
    with pytest.raises(UsageError, match="alpha"):
        ProgressiveNoise(math.inf)
    with pytest.raises(UsageError, match="alpha='1'"):
        MixedNoise("1")
    with pytest.raises(UsageError, match="num_frames"):
        DecomposedNoise(num_frames=10**12)
    with pytest.raises(UsageError, match="lambdas"):
        DecomposedNoise([0.5, 1.5], num_frames=2)
    with pytest.raises(UsageError, match="lambdas"):
        DecomposedNoise([0.5], num_frames=2)
    with pytest.raises(UsageError, match="base_frame"):
        DecomposedNoise(num_frames=2, base_frame=2)
    previous = IidNoise().sample(SHAPE, rng=Rng(0))
    common = {"alpha": 1.0, "prior": IidNoise(), "rng": Rng(0), "first_frame": 0}
    with pytest.raises(UsageError, match="did you mean 'mirror'"):
        reuse_noise(previous, order="miror", overlap=1, **common)
    with pytest.raises(UsageError, match="overlap=9"):
        reuse_noise(previous, order="mirror", overlap=9, **common)


def test_misfits_are_refused() -> None:
    prior = MixedNoise()
    with pytest.raises(ValueError, match="2 seeds"):
        prior.sample(SHAPE, rng=Rng([0, 1]))
    with pytest.raises(ValueError, match="cannot continue"):
        prior.sample(SHAPE, rng=Rng(0), first_frame=4, past=torch.zeros(1, 4, 2, 8, 8))
    with pytest.raises(ValueError, match="before frame 1"):
        prior.sample(SHAPE, rng=Rng(0), first_frame=1, past=torch.zeros(1, 4, 2, 32, 32))


def test_naming_the_priors_loads_no_torch() -> None:
    code = "import sys, latentvid.noise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_base_frame_stands_in_the_middle_of_every_window() -> None:
    prior = DecomposedNoise(num_frames=8)
    first, later = (prior.parts(SHAPE, rng=Rng(1), first_frame=n) for n in (0, 6))
    assert torch.equal(later.noise[:, :, 3], first.base[:, :, 0])
    assert torch.equal(later.residual[:, :, :2], first.residual[:, :, 6:])
    assert prior.period == 8
    assert DecomposedNoise(base_frame=None).period == 1
