"""Laws of every registered noise prior."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise import PRIORS
from latentvid.noise.prior import NoisePrior
from latentvid.noise.reuse import recycle, reuse_noise
from tests.noise.basis import BasisRng, covariance_of

SHAPE = LatentShape(2, 3, 9, 4, 5)


def make(kind: str, **config: object) -> NoisePrior:
    return PRIORS.get(kind)(**config)


VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((kind, {}) for kind in PRIORS),
    *((kind, {"alpha": alpha}) for kind in ("mixed", "progressive") for alpha in (0.0, 0.5, 1.0, 2.0, 4.0)),
    ("decomposed", {"num_frames": 9}),
    ("decomposed", {"num_frames": 4, "lambdas": [0.1, 0.4, 0.0, 0.9], "base_frame": 3}),
    ("decomposed", {"base_frame": None, "lambdas": 0.3}),
]
every_prior = pytest.mark.parametrize(("kind", "config"), VARIANTS, ids=str)


@every_prior
def test_shape_dtype_and_unit_diagonal(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    noise = prior.sample(SHAPE, rng=Rng([1, 2]))
    assert noise.shape == SHAPE.dims
    assert noise.dtype == torch.float32
    cov = prior.covariance(9)
    assert cov.dtype == torch.float64
    torch.testing.assert_close(cov.diagonal(), torch.ones(9, dtype=torch.float64))
    assert torch.linalg.eigvalsh(cov).min() > -1e-12


@every_prior
@pytest.mark.parametrize("first_frame", [0, 5, 1000])
def test_draws_have_exactly_the_declared_covariance(kind: str, config: dict, first_frame: int) -> None:
    prior = make(kind, **config)
    rng = BasisRng(6000 if first_frame else 64)
    noise = prior.sample(LatentShape(1, rng.size, 9, 1, 1), rng=rng, first_frame=first_frame)
    torch.testing.assert_close(covariance_of(noise), prior.covariance(9), atol=1e-6, rtol=0)


@every_prior
def test_draws_have_the_declared_covariance_by_counting(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    noise = prior.sample(LatentShape(1, 4, 9, 64, 64), rng=Rng(3)).double()
    found = torch.einsum("bcthw,bcshw->ts", noise, noise) / noise[:, :, 0].numel()
    # 16,384 draws: a standard error of at most sqrt(2 / 16384) = 0.011.
    torch.testing.assert_close(found, prior.covariance(9), atol=0.05, rtol=0)


@every_prior
def test_a_sample_depends_on_its_own_seed_only(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    together = prior.sample(SHAPE, rng=Rng([7, 8]))
    one = LatentShape(1, *SHAPE.dims[1:])
    for i, seed in enumerate((7, 8)):
        assert torch.equal(together[i : i + 1], prior.sample(one, rng=Rng(seed)))
    assert not torch.equal(together[0], together[1])


@every_prior
def test_a_frame_depends_on_its_index_and_not_on_the_window(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    film = prior.sample(SHAPE.with_frames(400), rng=Rng([7, 8]))
    starts = (prior.period * (start // prior.period) for start in (0, 0, 3, 150, 395))
    for first, frames in zip(starts, (1, 16, 9, 60, 5), strict=True):
        window = prior.sample(SHAPE.with_frames(frames), rng=Rng([7, 8]), first_frame=first)
        assert torch.equal(window, film[:, :, first : first + frames])


@every_prior
@pytest.mark.parametrize(("num_past", "first_frame"), [(1, 1), (4, 4), (4, 20), (12, 20)])
def test_a_continued_draw_keeps_the_joint_law(kind: str, config: dict, num_past: int, first_frame: int) -> None:
    prior, rng = make(kind, **config), BasisRng(256)
    shape = LatentShape(1, rng.size, num_past, 1, 1)
    past = prior.sample(shape, rng=rng, first_frame=first_frame - num_past)
    new = prior.sample(shape.with_frames(7), rng=rng, first_frame=first_frame, past=past)
    joint = covariance_of(torch.cat([past, new], dim=2))
    torch.testing.assert_close(joint, prior.covariance(num_past + 7), atol=2e-6, rtol=0)


@every_prior
def test_a_continued_draw_has_the_declared_law_given_a_past_from_elsewhere(kind: str, config: dict) -> None:
    prior, rng = make(kind, **config), BasisRng(64)
    shape = LatentShape(1, rng.size, 5, 1, 1)
    past = torch.zeros(1, rng.size, 4, 1, 1)
    new = prior.sample(shape, rng=rng, first_frame=4, past=past)
    cov = prior.covariance(9)
    inverse = torch.linalg.pinv(cov[:4, :4], hermitian=True)
    given = cov[4:, 4:] - cov[4:, :4] @ inverse @ cov[:4, 4:]
    torch.testing.assert_close(covariance_of(new), given, atol=1e-6, rtol=0)


@every_prior
def test_a_continued_frame_does_not_depend_on_the_length(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    past = prior.sample(SHAPE.with_frames(4), rng=Rng([7, 8]))
    longer = prior.sample(SHAPE.with_frames(12), rng=Rng([7, 8]), first_frame=4, past=past)
    shorter = prior.sample(SHAPE.with_frames(5), rng=Rng([7, 8]), first_frame=4, past=past)
    assert torch.equal(shorter, longer[:, :, :5])


@every_prior
def test_one_frame_is_standard_normal_and_an_images_noise(kind: str, config: dict) -> None:
    prior = make(kind, **config)
    assert prior.covariance(1).tolist() == [[1.0]]
    noise = prior.sample(LatentShape(1, 4, 1, 128, 128), rng=Rng(5))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
def test_alpha_zero_is_iid_to_the_bit(kind: str) -> None:
    prior, iid = make(kind, alpha=0.0), make("iid")
    past = iid.sample(SHAPE.with_frames(3), rng=Rng([1, 2]))
    assert torch.equal(prior.sample(SHAPE, rng=Rng([1, 2])), iid.sample(SHAPE, rng=Rng([1, 2])))
    continued = prior.sample(SHAPE, rng=Rng([1, 2]), first_frame=3, past=past)
    assert torch.equal(continued, iid.sample(SHAPE, rng=Rng([1, 2]), first_frame=3, past=past))
    assert torch.equal(continued, iid.sample(SHAPE, rng=Rng([1, 2]), first_frame=3))


@pytest.mark.parametrize("kind", ["iid", "mixed", "progressive"])
def test_the_law_does_not_know_the_direction_of_time(kind: str) -> None:
    cov = make(kind).covariance(9)
    torch.testing.assert_close(cov, cov.flip(0, 1))


@every_prior
def test_config_survives_a_file(kind: str, config: dict, tmp_path: Path) -> None:
    prior = make(kind, **config)
    prior.save_pretrained(tmp_path)
    again = type(prior).from_pretrained(tmp_path)
    assert again.config == {**prior.config, **{k: v for k, v in again.config.items() if k.startswith("_")}}
    assert torch.equal(again.covariance(40), prior.covariance(40))
    assert "_use_default_values" not in (tmp_path / NoisePrior.config_name).read_text()


class Carrier(DiffusionPipeline):
    def __init__(self, prior: NoisePrior) -> None:
        super().__init__()
        self.register_modules(prior=prior)


@every_prior
def test_a_diffusers_pipeline_carries_the_prior(kind: str, config: dict, tmp_path: Path) -> None:
    prior = make(kind, **config)
    Carrier(prior).save_pretrained(tmp_path)
    again = Carrier.from_pretrained(tmp_path, local_files_only=True).prior
    assert type(again) is type(prior)
    assert torch.equal(again.covariance(40), prior.covariance(40))


@every_prior
@pytest.mark.parametrize("num_prompt", [0, 1, 4, 9])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0, math.inf])
def test_recycled_noise_keeps_the_law(kind: str, config: dict, num_prompt: int, alpha: float) -> None:
    prior, rng = make(kind, **config), BasisRng(32)
    old = torch.linalg.eigh(prior.covariance(9))
    reused = torch.zeros(1, rng.size, 9, 1, 1, dtype=torch.float64)
    reused[0, 16:25, :, 0, 0] = (old.eigenvectors * old.eigenvalues.clamp(min=0).sqrt()).T
    noise = recycle(reused, prior=prior, num_prompt_frames=num_prompt, alpha=alpha, rng=rng, first_frame=9)
    assert torch.equal(noise[:, :, :num_prompt], reused[:, :, :num_prompt])
    assert (covariance_of(noise) - prior.covariance(9)).abs().max() < 1e-10


@pytest.mark.parametrize("order", ["mirror", "chronological"])
@pytest.mark.parametrize("overlap", [0, 1, 4, 9])
@pytest.mark.parametrize("kind", ["iid", "mixed", "progressive"])
def test_reused_noise_keeps_the_law_window_after_window(kind: str, order: str, overlap: int) -> None:
    prior, rng = make(kind), BasisRng(128)
    noise = prior.sample(LatentShape(1, rng.size, 9, 1, 1), rng=rng)
    for window in range(1, 7):
        previous, first = noise, window * (9 - overlap)
        noise = reuse_noise(previous, order=order, overlap=overlap, alpha=2.0, prior=prior, rng=rng, first_frame=first)
        expected: Tensor = (previous.flip(2) if order == "mirror" else previous[:, :, 9 - overlap :])[:, :, :overlap]
        assert torch.equal(noise[:, :, :overlap], expected)
        torch.testing.assert_close(covariance_of(noise), prior.covariance(9), atol=5e-6, rtol=0)
