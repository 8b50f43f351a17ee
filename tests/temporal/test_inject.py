"""Injection: image networks of every kind are left as they were, but for layers that do nothing yet."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from latentvid.core.rng import Rng
from latentvid.temporal.attention import TemporalAttention
from latentvid.temporal.context import ClipContext
from latentvid.temporal.convolution import TemporalConvolution
from latentvid.temporal.inject import inject, is_temporal, temporal_parameters
from tests.factories import disturb, image_unet, vae_kl, vae_tiny

FRAMES = 3


def grow(network: nn.Module) -> tuple[ClipContext, list[str]]:
    context = ClipContext(num_frames=FRAMES)
    convolution = lambda channels, name: TemporalConvolution(channels, context, name)  # noqa: E731
    attention = lambda channels, _: TemporalAttention(channels, context, num_heads=2)  # noqa: E731
    makers = {ResnetBlock2D: convolution, AutoencoderTinyBlock: convolution, Transformer2DModel: attention}
    return context, inject(network, makers)


def run_unet(network: nn.Module) -> Tensor:
    return network(Rng(range(FRAMES)).normal(3, 4, 4), torch.tensor([1, 500, 900]), Rng(range(FRAMES)).normal(5, 16))[0]


def run_decoder(network: nn.Module) -> Tensor:
    return network(Rng(range(FRAMES)).normal(3, 4, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "unet": (lambda: image_unet(), run_unet),
    "kl": (lambda: vae_kl().decoder, run_decoder),
    "tiny": (lambda: vae_tiny().decoder, run_decoder),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


@every_network
@torch.no_grad()
def test_at_rest_nothing_changes_and_trained_it_does(kind: str) -> None:
    make, run = NETWORKS[kind]
    image, network = make(), make()
    names = grow(network)[1]
    assert len(names) == len(set(names)) > 0
    assert torch.equal(run(network), run(image))
    assert not torch.allclose(run(disturb(network)), run(image), atol=1e-3)


@every_network
def test_only_temporal_keys_are_new(kind: str) -> None:
    make, _ = NETWORKS[kind]
    image, network = make(), make()
    names = grow(network)[1]
    new = network.state_dict().keys() - image.state_dict().keys()
    assert image.state_dict().keys() <= network.state_dict().keys()
    assert new == temporal_parameters(network).keys()
    assert all(".temporal." in key for key in new)
    assert {key.split(".temporal.")[0] for key in new} == set(names)
    assert not any(is_temporal(key) for key in image.state_dict())


@every_network
@torch.no_grad()
def test_a_deep_copy_is_a_network_of_its_own_with_one_context(kind: str) -> None:
    make, run = NETWORKS[kind]
    network = make()
    context = grow(network)[0]
    twin = disturb(copy.deepcopy(network))
    contexts = {id(module.context) for module in twin.modules() if hasattr(module, "context")}
    assert len(contexts) == 1
    assert id(context) not in contexts
    alone = run(make())
    assert torch.equal(run(network), alone)
    assert not torch.allclose(run(twin), alone, atol=1e-3)


@every_network
def test_injecting_twice_is_refused(kind: str) -> None:
    network = NETWORKS[kind][0]()
    grow(network)
    before = list(network.state_dict())
    with pytest.raises(ValueError, match="has temporal layers already"):
        grow(network)
    assert list(network.state_dict()) == before


def test_a_network_without_such_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no block to inject after"):
        grow(nn.Linear(2, 2))
