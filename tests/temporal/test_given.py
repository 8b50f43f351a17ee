"""Given frames are shown to the others: exactly these, from both sides, and to nobody where nothing is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.temporal.context import ClipContext
from latentvid.temporal.given import GivenFrames
from latentvid.temporal.inject import is_temporal
from tests.factories import TEXT_WIDTH, disturb, temporal_unet

CHANNELS, FRAMES = 2, 6


def layer(kinds: list[float]) -> GivenFrames:
    """Return a layer that adds up its inputs, each kind (three from before, three from behind) by its weight."""
    made = GivenFrames(CHANNELS, ClipContext()).requires_grad_(False)
    eye = torch.eye(CHANNELS)
    made.mix.weight.copy_(torch.cat([weight * eye for weight in kinds], dim=1)[:, :, None, None])
    return made


def run(made: GivenFrames, x: Tensor, given: list[int]) -> Tensor:
    levels = torch.full((len(x), FRAMES), 700.0)
    levels[:, given] = 30.0
    with made.context.clip(FRAMES, levels=levels):
        out = made(x.transpose(1, 2).flatten(0, 1))
    return out.unflatten(0, (len(x), FRAMES)).transpose(1, 2)


@pytest.fixture
def clips() -> Tensor:
    return Rng([1, 2]).normal(CHANNELS, FRAMES, 3, 4)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (0, lambda x, t: x[:, :, 1]),
        (1, lambda x, t: x[:, :, 1] * (t - 1) / FRAMES),
        (2, lambda x, t: (x[:, :, 1] - x[:, :, 0]) * (t - 1)),
    ],
)
def test_what_lies_before_is_held_and_carried_on(kind: int, wanted, clips: Tensor) -> None:
    added = run(layer([float(k == kind) for k in range(6)]), clips, [0, 1]) - clips
    assert torch.equal(added[:, :, :2], torch.zeros_like(added[:, :, :2]))
    for t in range(2, FRAMES):
        torch.testing.assert_close(added[:, :, t], wanted(clips, t))


def test_time_may_run_backwards(clips: Tensor) -> None:
    weights = [0.3, 0.5, 0.7]
    forwards = run(layer([*weights, 0, 0, 0]), clips, [0, 1])
    backwards = run(layer([0, 0, 0, *weights]), clips.flip(2), [FRAMES - 1, FRAMES - 2]).flip(2)
    torch.testing.assert_close(forwards, backwards)


def test_the_nearest_counts_and_a_lone_one_tells_of_no_change(clips: Tensor) -> None:
    held = run(layer([1, 0, 0, 0, 0, 0]), clips, [0, 3]) - clips
    torch.testing.assert_close(held[:, :, [1, 2, 4, 5]], clips[:, :, [0, 0, 3, 3]])
    changed = run(layer([0, 0, 1, 0, 0, 1]), clips, [0, 3])
    assert torch.equal(changed, clips)


@pytest.mark.parametrize("given", [[], list(range(FRAMES))])
def test_clips_of_one_level_pass_unchanged(given: list[int], clips: Tensor) -> None:
    assert torch.equal(run(layer([1.0] * 6), clips, given), clips)


def test_a_unet_that_grows_to_look_is_unchanged_until_trained() -> None:
    before = temporal_unet()
    grown = TemporalUNet.from_image(before, temporal_given_frames=True).eval()
    new = {name for name, _ in grown.named_parameters()} - {name for name, _ in before.named_parameters()}
    assert new == {"conv_in.temporal.mix.weight"}
    assert all(is_temporal(name) for name in new)
    x, text = Rng([1, 2]).normal(3, FRAMES, 4, 6), Rng([3, 4]).normal(5, TEXT_WIDTH)
    levels = torch.tensor([[0.0, 0, 0, 500, 500, 500]]).expand(2, -1)
    with torch.no_grad():
        assert torch.equal(grown(x, levels, text), before(x, levels, text))
        alike = TemporalUNet.from_image(before, temporal_given_frames=True).eval()
        alike.conv_in.load_state_dict(disturb(grown).conv_in.state_dict())
        assert torch.equal(alike(x, 500, text), before(x, 500, text))  # nothing is given
        assert torch.equal(alike(x[:, :, :1], 500, text), before(x[:, :, :1], 500, text))
        assert not torch.allclose(alike(x, levels, text), before(x, levels, text), atol=1e-3)


def test_it_learns_from_the_first_step() -> None:
    grown = TemporalUNet.from_image(temporal_unet(), temporal_given_frames=True).train()
    x, text = Rng([1, 2]).normal(3, FRAMES, 4, 6), Rng([3, 4]).normal(5, TEXT_WIDTH)
    grown(x, torch.tensor([[0.0, 0, 500, 500, 500, 500]]), text).square().mean().backward()
    gradient = grown.conv_in.temporal.mix.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
