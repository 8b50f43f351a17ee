"""The discriminator's formulas against numbers worked out by hand, and its network's shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentvid.autoencoders.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_hinge,
    hinge,
    lecam,
)

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])


def test_hinge() -> None:
    # Real: 0 and 0.5, mean 0.25. Fake: 0 and 2, mean 1.
    assert float(hinge(REAL, FAKE)) == pytest.approx(0.5 * (0.25 + 1.0))
    assert float(generator_hinge(FAKE)) == pytest.approx(1.0)


def test_lecam() -> None:
    # Real over 1: 1 and 0, squared mean 0.5. 0.5 over fake: 3.5 and 0, squared mean 6.125.
    assert float(lecam(REAL, FAKE, torch.tensor(0.5), torch.tensor(1.0))) == pytest.approx(0.5 + 6.125)


def test_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction = (weight * torch.tensor([3.0, 4.0])).sum()  # gradient of length 5
    adversarial = (weight * torch.tensor([0.0, 2.0])).sum()  # of length 2
    found = adaptive_weight(reconstruction, adversarial, weight, most=1e4)
    assert float(found) == pytest.approx(5 / (2 + 1e-4))
    assert not found.requires_grad
    assert weight.grad is None
    (reconstruction + found * adversarial).backward()  # the graphs are still there
    assert float(adaptive_weight(weight.sum() * 3, weight.sum() * 0, weight, most=7.0)) == 7.0


@pytest.mark.parametrize(("frames", "size"), [(1, 16), (5, 24), (12, 32)])
def test_a_logit_per_patch_for_any_length(frames: int, size: int) -> None:
    logits = PatchDiscriminator(width=4, num_layers=3)(torch.zeros(2, 3, frames, size, size))
    assert logits.shape == (2, 1, -(-frames // 4), size // 8, size // 8)


def test_it_sees_time_and_has_no_batch_statistics() -> None:
    network = PatchDiscriminator(width=4, num_layers=2)
    video = torch.randn(2, 3, 6, 16, 16)
    assert not torch.allclose(network(video), network(video.flip(2)).flip(2))
    torch.testing.assert_close(network(video)[:1], network(video[:1]))
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
