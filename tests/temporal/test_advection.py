"""Features that the text moves: nothing at rest, a shift to first order, one way for one word."""

from __future__ import annotations

import math

import torch

from latentvid.core.rng import Rng
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.temporal.advection import Advection, TextMotion
from latentvid.temporal.context import ClipContext
from latentvid.temporal.convolution import TemporalConvolution
from latentvid.temporal.inject import is_temporal
from tests.factories import TEXT_WIDTH, disturb, image_unet, temporal_unet

WIDTH = 6


def wave(shift: float) -> torch.Tensor:
    """A slow wave along x, moved by `shift` pixels to the right: [1 1 4 32]."""
    x = torch.arange(32) - shift
    return torch.sin(2 * math.pi * x / 16).expand(1, 1, 4, 32)


def test_at_rest_nothing_moves() -> None:
    x = Rng(0).normal(3, 5, 7)
    assert torch.equal(Advection(3, WIDTH)(x, torch.ones(1, WIDTH)), x)


def test_it_moves_by_what_the_embedding_says() -> None:
    layer = Advection(1, WIDTH).requires_grad_(False)
    layer.shifts.weight[0, 0] = -0.3  # across, for the first coordinate
    towards, back = torch.eye(WIDTH)[:1], -torch.eye(WIDTH)[:1]
    inner = slice(2, -2)
    for motion, shift in ((towards, 0.3), (back, -0.3)):
        moved = layer(wave(0), motion)
        left = (moved - wave(shift))[..., inner].abs().max()
        assert left < 0.02  # second order: (0.3 * 2 pi / 16)^2 / 2 = 0.007, and the difference quotient's
        assert left < (moved - wave(-shift))[..., inner].abs().max() / 10


def test_each_row_moves_by_its_own_text() -> None:
    layer = Advection(2, WIDTH).requires_grad_(False)
    layer.shifts.weight += Rng(1).normal(4, WIDTH)[0]
    x, motion = Rng([2, 3]).normal(2, 5, 5), Rng([4, 5]).normal(WIDTH)
    together = layer(x, motion)
    for k in range(2):
        torch.testing.assert_close(together[k : k + 1], layer(x[k : k + 1], motion[k : k + 1]))


def test_a_convolution_without_a_text_mixes_as_ever() -> None:
    context = ClipContext(num_frames=4)
    layer = disturb_all(TemporalConvolution(8, context, "block", causal=False, motion_width=WIDTH))
    plain = TemporalConvolution(8, context, "block", causal=False)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("advections")})
    x = Rng(7).normal(8, 4, 3, 5)[0].transpose(0, 1)
    assert torch.equal(layer(x), plain(x))
    with context.clip(4, motion=Rng(8).normal(4, WIDTH)[0]):
        assert not torch.allclose(layer(x), plain(x))
    assert context.motion is None


def disturb_all(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return layer.requires_grad_(False)


def test_a_unet_that_grows_to_listen_is_unchanged_until_trained() -> None:
    before = temporal_unet()
    grown = TemporalUNet.from_image(before, temporal_advection=True).eval()
    assert isinstance(grown.text_motion, TextMotion)
    assert before.text_motion is None
    x, text = Rng([1, 2]).normal(3, 4, 4, 6), Rng([3, 4]).normal(5, TEXT_WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(grown(x, 500, text), before(x, 500, text), atol=1e-5, rtol=1e-4)
    new = {name for name, _ in grown.named_parameters()} - {name for name, _ in before.named_parameters()}
    assert new
    assert all(is_temporal(name) for name in new)


def test_one_frame_is_an_image_whatever_the_text_moves() -> None:
    unet = disturb(TemporalUNet.from_image(image_unet(), temporal_advection=True)).eval()
    x, text = Rng([1, 2]).normal(3, 1, 4, 6), Rng([3, 4]).normal(5, TEXT_WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(unet(x, 500, text)[:, :, 0], image_unet()(x[:, :, 0], 500, text)[0])


def test_text_reaches_motion_from_the_first_step() -> None:
    """The error's gradient tells the shifts at rest which way each text wants them."""
    unet = temporal_unet()
    grown = TemporalUNet.from_image(unet, temporal_advection=True).train()
    x, text = Rng([1, 2]).normal(3, 4, 4, 6), Rng([3, 4]).normal(5, TEXT_WIDTH)
    grown(x, 500, text).square().mean().backward()
    shifts = [p for name, p in grown.named_parameters() if name.endswith("shifts.weight")]
    assert shifts
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in shifts)
