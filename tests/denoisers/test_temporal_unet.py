"""The temporal U-Net against the image U-Net that it grew from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.temporal.inject import is_temporal
from tests.factories import TEXT_WIDTH, UNET_CONFIG, disturb, image_unet, temporal_unet

BATCH, FRAMES = 2, 4


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def clips(frames: int = FRAMES) -> Tensor:
    return Rng([1, 2]).normal(3, frames, 4, 6)


def text() -> Tensor:
    return Rng([3, 4]).normal(5, TEXT_WIDTH)


def kept_in(saved: dict[int, Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
    """Collect, by their places in memory, the tensors that a forward pass keeps for the backward pass."""
    return torch.autograd.graph.saved_tensors_hooks(lambda x: saved.update({x.data_ptr(): x}) or x, lambda x: x)


def frame_by_frame(unet: UNet2DConditionModel, x: Tensor, timestep: Tensor, words: Tensor) -> Tensor:
    """timestep [b t], words [b t l d]"""
    frames = [unet(x[:, :, k], timestep[:, k], words[:, k])[0] for k in range(x.shape[2])]
    return torch.stack(frames, dim=2)


@pytest.mark.parametrize(
    "timestep",
    [500, torch.tensor(500.0), torch.tensor([10.0, 900.0]), torch.tensor([[0, 0, 500, 500.0], [7, 8, 9, 10]])],
)
def test_at_rest_it_is_the_image_network_frame_by_frame(timestep: Tensor | int) -> None:
    spelled = torch.as_tensor(timestep).float()
    spelled = (spelled[:, None] if spelled.ndim == 1 else spelled).expand(BATCH, FRAMES)
    words = text()[:, None].expand(-1, FRAMES, -1, -1)
    found = TemporalUNet.from_image(image_unet())(clips(), timestep, text())
    expected = frame_by_frame(image_unet(), clips(), spelled, words)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_text_may_differ_from_frame_to_frame() -> None:
    words = torch.stack([text(), *Rng(range(2 * (FRAMES - 1))).normal(5, TEXT_WIDTH).unflatten(0, (-1, 2))], dim=1)
    timestep = torch.full((BATCH, FRAMES), 300.0)
    found = TemporalUNet.from_image(image_unet())(clips(), 300, words)
    torch.testing.assert_close(found, frame_by_frame(image_unet(), clips(), timestep, words), atol=1e-5, rtol=1e-4)


def test_one_frame_is_an_image_after_training_too() -> None:
    grown = disturb(TemporalUNet.from_image(image_unet()))
    expected = image_unet()(clips(1)[:, :, 0], 500, text())[0]
    assert torch.equal(grown(clips(1), 500, text())[:, :, 0], expected)


def test_trained_frames_see_each_other_and_clips_do_not() -> None:
    unet, changed = temporal_unet(), clips()
    changed[0, :, -1] += Rng(9).normal(3, 4, 6)[0]
    difference = (unet(changed, 500, text()) - unet(clips(), 500, text())).abs().amax(dim=(1, 3, 4))
    assert (difference[0] > 1e-4).all()
    assert difference[1].max() == 0


def test_a_clip_does_not_depend_on_its_batch() -> None:
    unet, level = temporal_unet(), torch.tensor([[0, 500, 500, 500.0], [900, 900, 900, 900]])
    together = unet(clips(), level, text())
    for k in range(BATCH):
        alone = unet(clips()[k : k + 1], level[k : k + 1], text()[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path: Path) -> None:
    unet = temporal_unet()
    unet.save_pretrained(tmp_path)
    loaded = TemporalUNet.from_pretrained(tmp_path)
    assert {k: loaded.config[k] for k in ("temporal_num_convs", "temporal_num_heads", "temporal_dropout")} == {
        "temporal_num_convs": 2,
        "temporal_num_heads": 2,
        "temporal_dropout": 0.0,
    }
    assert loaded.state_dict().keys() == unet.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in unet.state_dict().items())
    assert torch.equal(loaded(clips(), 500, text()), unet(clips(), 500, text()))


def test_it_grows_from_a_saved_image_network(tmp_path: Path) -> None:
    image_unet(seed=5).save_pretrained(tmp_path)
    saved = UNet2DConditionModel.from_pretrained(tmp_path)
    grown = TemporalUNet.from_image(saved, temporal_num_convs=1, temporal_num_heads=2)
    assert not grown.training
    assert grown.config.temporal_num_convs == 1
    weights = grown.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.state_dict().items())
    assert {name for name in weights if not is_temporal(name)} == saved.state_dict().keys()
    assert TemporalUNet.from_image(saved.train().bfloat16()).training
    assert TemporalUNet.from_image(saved).dtype == torch.bfloat16


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradient_checkpointing_changes_memory_alone(dropout: float) -> None:
    levels = torch.tensor([[0, 300, 300, 300.0], [0, 0, 800, 800]])
    found = []
    for checkpointed in (False, True):
        unet = TemporalUNet(
            **UNET_CONFIG,
            temporal_num_heads=2,
            temporal_dropout=dropout,
            temporal_advection=True,
            temporal_given_frames=True,
        )
        for generation, parameter in enumerate(unet.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(generation)))
        if checkpointed:
            unet.enable_gradient_checkpointing()
        saved: dict[int, Tensor] = {}
        words = text().requires_grad_()
        torch.manual_seed(0)
        with torch.enable_grad(), kept_in(saved):
            unet.train()(clips(), levels, words).square().mean().backward()
        of = {name: parameter.grad for name, parameter in unet.named_parameters()} | {"words": words.grad}
        found.append((of, sum(x.numel() for x in saved.values())))
    (whole, most), (recomputed, least) = found
    for name, gradient in whole.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert least < 0.6 * most
