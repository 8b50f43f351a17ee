"""Reconstruction losses against closed forms, and what bf16 may and may not do to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.autoencoders.losses import (
    ReconstructionLoss,
    ReconstructionWeights,
    gaussian_kl,
    laplacian_l1,
    temporal_l1,
)
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng

ALL = ReconstructionWeights(l1=1, mse=2, temporal=0.5, laplacian=0.25, lpips=0.1)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    assert x.dtype == y.dtype == torch.float32
    return (x - y).square().mean(dim=(1, 2, 3))


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    x, y = (Rng(seed).normal(4, 3, 16, 24).expand(2, -1, -1, -1, -1).clone() * 0.3 for seed in (1, 2))
    return x, y


def test_the_loss_is_the_weighted_sum_of_its_terms(clips: tuple[Tensor, Tensor]) -> None:
    loss, terms = ReconstructionLoss(ALL, perceptual=_distance)(*clips)
    assert set(terms) == {"l1", "mse", "temporal", "laplacian", "lpips"}
    weights = ALL.model_dump()
    assert float(loss) == pytest.approx(sum(weights[name] * float(term) for name, term in terms.items()), rel=1e-6)
    x, y = clips
    assert float(terms["l1"]) == pytest.approx(float((x - y).abs().mean()), rel=1e-6)
    assert float(terms["mse"]) == pytest.approx(float((x - y).square().mean()), rel=1e-6)
    assert float(terms["lpips"]) == pytest.approx(float(terms["mse"]), rel=1e-6)
    assert not any(term.requires_grad for term in terms.values())


def test_identical_clips_lose_nothing(clips: tuple[Tensor, Tensor]) -> None:
    loss, _ = ReconstructionLoss(ALL, perceptual=_distance)(clips[0], clips[0])
    assert float(loss) == 0


def test_terms_without_weight_are_left_out(clips: tuple[Tensor, Tensor]) -> None:
    _, terms = ReconstructionLoss(ReconstructionWeights(l1=1, temporal=0))(*clips)
    assert set(terms) == {"l1"}


def test_temporal_term_sees_change_and_nothing_else() -> None:
    x = torch.zeros(1, 4, 3, 8, 8)
    assert float(temporal_l1(x + 0.7, x)) == 0
    alternating = torch.tensor([0.1, -0.1, 0.1, -0.1])[None, :, None, None, None]
    assert float(temporal_l1(x + alternating, x)) == pytest.approx(0.2)


def test_stills_have_a_temporal_term_of_zero_and_a_gradient() -> None:
    x = torch.zeros(2, 1, 3, 8, 8, requires_grad=True)
    loss, terms = ReconstructionLoss(ReconstructionWeights(l1=0, temporal=1))(x, torch.ones(2, 1, 3, 8, 8))
    loss.backward()
    assert float(terms["temporal"]) == 0
    assert x.grad is not None
    assert float(x.grad.abs().sum()) == 0


@pytest.mark.parametrize("size", [(64, 64), (35, 37), (5, 90), (1, 1)])
def test_a_constant_error_lies_in_the_coarsest_band_alone(size: tuple[int, int]) -> None:
    y = Rng(3).normal(3, *size)
    assert float(laplacian_l1(y + 0.3, y)) == pytest.approx(0.3, rel=1e-4)


def test_the_finest_band_is_a_checkerboard() -> None:
    """It averages to nothing one level up, so it counts once, with its own amplitude."""
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(1, 3, -1, -1)
    assert float(laplacian_l1(0.2 * board, torch.zeros_like(board))) == pytest.approx(0.2, rel=1e-5)


def test_structure_is_preferred_over_blur() -> None:
    """Of two errors of one L1 size, the one spread over all scales costs more than the one at a single scale."""
    noise = Rng(4).normal(3, 64, 64)
    offset = torch.full_like(noise, float(noise.abs().mean()))
    zero = torch.zeros_like(noise)
    assert float(laplacian_l1(noise, zero)) > 1.2 * float(laplacian_l1(offset, zero))


def test_autocast_and_bf16_inputs_do_not_lower_the_precision(clips: tuple[Tensor, Tensor]) -> None:
    x, y = (v.bfloat16() for v in clips)
    plain, _ = ReconstructionLoss(ALL, perceptual=_distance)(x.float(), y.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, terms = ReconstructionLoss(ALL, perceptual=_distance)(x, y)
    assert inside.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert torch.equal(inside, plain)


def test_descending_the_loss_reaches_the_target(clips: tuple[Tensor, Tensor]) -> None:
    target = clips[1]
    x = clips[0].clone().requires_grad_()
    loss_of = ReconstructionLoss(ALL, perceptual=_distance)
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = loss_of(x, target)[0].item()
    for _ in range(100):
        optimizer.zero_grad()
        loss_of(x, target)[0].backward()
        optimizer.step()
    assert loss_of(x, target)[0].item() < 0.1 * first


def test_the_perceptual_network_is_neither_trained_nor_saved() -> None:
    class Owner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = ReconstructionLoss(ALL, perceptual=torch.nn.Bilinear(1, 1, 1))

    assert Owner().state_dict() == {}


def test_mistakes_are_told(clips: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UsageError, match="laplacian"):
        ReconstructionLoss(ReconstructionWeights(lpips=1))
    with pytest.raises(UsageError, match="every weight is 0"):
        ReconstructionLoss(ReconstructionWeights(l1=0, temporal=0))
    with pytest.raises(ValueError, match=r"\[b t 3 h w\]"):
        ReconstructionLoss()(clips[0].transpose(1, 2), clips[1].transpose(1, 2))


def test_kl_agrees_with_torch() -> None:
    mean, logvar = Rng(5).normal(2, 4, 3, 3), Rng(6).normal(2, 4, 3, 3)
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0))
    assert float(gaussian_kl(mean, logvar)) == pytest.approx(float(each.flatten(1).sum(1).mean()), rel=1e-5)
    assert float(gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3))) == 0
