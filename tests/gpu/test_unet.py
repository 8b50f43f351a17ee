"""The temporal U-Net and its layers on the GPU: what the CPU gives, in every precision and memory layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from latentvid.core.errors import ResourceError
from latentvid.core.rng import Rng
from latentvid.core.runtime import place, resolve_runtime
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.temporal.attention import MOST_ROWS, TemporalAttention
from latentvid.temporal.context import ClipContext, StreamState
from latentvid.temporal.convolution import TemporalConvolution
from tests.factories import TEXT_WIDTH, UNET_CONFIG, disturb, temporal_unet
from tests.gpu.compare import EXACT, HALF, TF32, assert_near, tf32

pytestmark = pytest.mark.gpu
FRAMES, TOKENS = 6, 7


def unet(kind: str) -> TemporalUNet:
    if kind == "plain":
        return temporal_unet().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = TemporalUNet(**UNET_CONFIG, temporal_num_heads=2, temporal_advection=True, temporal_given_frames=True)
    return disturb(made).requires_grad_(False).eval()


def inputs() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return states, levels and texts: one level for all, one per clip, one per frame, and a still."""
    x, text = Rng([1, 2]).normal(3, FRAMES, 8, 12), Rng([3, 4]).normal(TOKENS, TEXT_WIDTH)
    levels = torch.full((2, FRAMES), 700.0)
    levels[:, :2] = 0
    return [
        (x, torch.tensor(500.0), text),
        (x, torch.tensor([500.0, 900.0]), text),
        (x, levels, Rng([5, 6]).normal(FRAMES, TOKENS, TEXT_WIDTH)),
        (x[:, :, :1], torch.tensor(500.0), text),
    ]


def run(network: TemporalUNet) -> list[Tensor]:
    return [
        network(*(value.to(network.device, network.dtype if k != 1 else value.dtype) for k, value in enumerate(given)))
        for given in inputs()
    ]


@pytest.mark.parametrize("kind", ["plain", "advection and given frames"])
def test_the_gpu_gives_what_the_cpu_gives(kind: str, device: torch.device) -> None:
    network = unet(kind)
    wanted = run(network)
    network.to(device)
    for bound, rounded in ((EXACT, False), (TF32, True)):
        with tf32(allowed=rounded):
            for found, expected in zip(run(network), wanted, strict=True):
                assert_near(found, expected, bound)
    turned = copy.deepcopy(network).to(memory_format=torch.channels_last)
    for found, expected in zip(run(turned), wanted, strict=True):
        assert_near(found, expected, EXACT, "channels last")
    for dtype, bound in ((torch.bfloat16, HALF), *(((torch.float16, 0.2 * HALF),) if device.type == "cuda" else ())):
        half = copy.deepcopy(network).to(dtype=dtype)
        for found, expected in zip(run(half), wanted, strict=True):
            assert found.dtype is dtype
            assert_near(found, expected, bound, str(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_across_frames_takes_large_pictures(dtype: torch.dtype, device: torch.device) -> None:
    """More places than CUDA's kernels take in one call."""
    side, channels, frames = (272, 8, 3) if device.type == "cuda" else (200, 8, 2)
    assert side**2 > MOST_ROWS
    context = ClipContext()
    layer = TemporalAttention(channels, context, num_heads=2).requires_grad_(False)
    torch.nn.init.normal_(layer.to_out.weight, std=0.3)
    x = Rng(1).normal(channels, side, side * frames)[0].unflatten(2, (side, frames)).permute(3, 0, 1, 2).contiguous()
    corner = x[..., :4, :4].contiguous()
    with context.clip(frames):
        wanted = layer(corner)
        layer.to(device, dtype)
        found = layer(x.to(device, dtype))[..., :4, :4]
    assert_near(found, wanted, EXACT if dtype is torch.float32 else HALF)


@pytest.mark.parametrize("causal", [True, False])
def test_convolution_across_frames_of_large_pictures(causal: bool, device: torch.device) -> None:
    """In float32 and, with gradients, under autocast; whole and continued."""
    side, frames = (384, 5) if device.type == "cuda" else (24, 5)
    context = ClipContext()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = TemporalConvolution(8, context, "layer", num_convs=2, causal=causal)
        torch.nn.init.normal_(layer.convs[-1].weight, std=0.1)
    x = Rng(list(range(frames))).normal(8, side, side)

    def through(where: torch.device, half: bool) -> tuple[Tensor, Tensor]:
        layer.to(where).zero_grad()
        with context.clip(frames), torch.autocast(where.type, torch.bfloat16, enabled=half):
            out = layer(x.to(where))
        out.float().square().mean().backward()
        grad = layer.convs[0].weight.grad
        assert grad is not None
        return out, grad.clone()

    wanted = through(torch.device("cpu"), half=False)
    for half, bound in ((False, EXACT), (True, HALF)):
        for found, expected in zip(through(device, half), wanted, strict=True):
            assert_near(found, expected, bound, "autocast" if half else "float32")
    if causal:
        state = StreamState()
        with torch.no_grad():
            parts = []
            for part in x.to(device).split(2):
                with context.clip(len(part), state):
                    parts.append(layer(part))
        assert_near(torch.cat(parts), wanted[0], EXACT)


def test_xformers_attends_as_torch_does(device: torch.device) -> None:
    try:
        runtime = resolve_runtime(str(device), "bf16", "xformers")
    except ResourceError as error:
        pytest.skip(str(error))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = {**UNET_CONFIG, "block_out_channels": (32, 64), "attention_head_dim": 4, "norm_num_groups": 8}
        network = disturb(TemporalUNet(**sizes, temporal_num_heads=2)).requires_grad_(False)
    wanted = run(network)
    for found, expected in zip(run(place(network, runtime)), wanted, strict=True):
        assert_near(found, expected, HALF)
