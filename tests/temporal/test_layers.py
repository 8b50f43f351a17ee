"""Temporal layers: what they must not touch, what they may see, and an independent witness for what they compute."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentvid.core.rng import Rng
from latentvid.temporal import attention as attention_module
from latentvid.temporal.attention import TemporalAttention
from latentvid.temporal.context import ClipContext, StreamState
from latentvid.temporal.convolution import TemporalConvolution, num_groups

BATCH, FRAMES, CHANNELS = 2, 5, 8


def stream(frames: int = FRAMES) -> Tensor:
    """[b*t c h w]"""
    return Rng([1, 2]).normal(CHANNELS, frames, 3, 4).transpose(1, 2).flatten(0, 1)


def frames_of(x: Tensor, frames: int = FRAMES) -> Tensor:
    return x.unflatten(0, (-1, frames))


def moved(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return layer.requires_grad_(False)


def convolution(context: ClipContext, *, causal: bool, trained: bool = True, num_convs: int = 2) -> nn.Module:
    layer = TemporalConvolution(CHANNELS, context, "block", causal=causal, num_convs=num_convs)
    return moved(layer) if trained else layer.requires_grad_(False)


def attention(context: ClipContext, *, trained: bool = True) -> nn.Module:
    layer = TemporalAttention(CHANNELS, context, num_heads=2)
    return moved(layer) if trained else layer.requires_grad_(False)


@pytest.fixture
def context() -> ClipContext:
    return ClipContext(num_frames=FRAMES)


@pytest.mark.parametrize("causal", [True, False])
def test_layers_at_rest_change_nothing(causal: bool, context: ClipContext) -> None:
    for layer in (convolution(context, causal=causal, trained=False), attention(context, trained=False)):
        assert torch.equal(layer(stream()), stream())


@pytest.mark.parametrize("num_convs", [1, 2, 3])
def test_the_causal_branch_is_a_convolution_in_time(num_convs: int, context: ClipContext) -> None:
    """nn.Conv3d with kernel (3, 1, 1) on the clip with its first frame put twice before it."""
    _check_against_conv3d(convolution(context, causal=True, num_convs=num_convs), causal=True)


@pytest.mark.parametrize("num_convs", [1, 2, 3])
def test_the_centred_branch_is_a_convolution_in_time(num_convs: int, context: ClipContext) -> None:
    _check_against_conv3d(convolution(context, causal=False, num_convs=num_convs), causal=False)


def _check_against_conv3d(layer: nn.Module, *, causal: bool) -> None:
    branch = frames_of(stream()).transpose(1, 2)  # [b c t h w]
    for norm, conv in zip(layer.norms, layer.convs, strict=True):
        per_frame = [F.group_norm(branch[:, :, t], norm.num_groups, norm.weight, norm.bias) for t in range(FRAMES)]
        branch = F.silu(torch.stack(per_frame, dim=2))
        conv3d = nn.Conv3d(CHANNELS, CHANNELS, (3, 1, 1), padding=0 if causal else (1, 0, 0)).requires_grad_(False)
        # Columns of the 1x1 convolution: all channels of the oldest frame, of the middle one, of the newest.
        conv3d.weight.copy_(conv.weight.view(CHANNELS, 3, CHANNELS).transpose(1, 2)[..., None, None])
        conv3d.bias.copy_(conv.bias)
        branch = conv3d(torch.cat([branch[:, :, :1]] * 2 + [branch], dim=2) if causal else branch)
    if causal:
        branch[:, :, 0] = 0
    expected = frames_of(stream()) + branch.transpose(1, 2)
    torch.testing.assert_close(frames_of(layer(stream())), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at", range(FRAMES))
def test_causal_frames_do_not_see_later_ones(at: int, context: ClipContext) -> None:
    layer = convolution(context, causal=True)
    changed = frames_of(stream()).clone()
    changed[:, at] += Rng(3).normal(CHANNELS, 3, 4)[0]  # the norm takes a constant out again
    difference = (frames_of(layer(changed.flatten(0, 1))) - frames_of(layer(stream()))).abs().amax(dim=(0, 2, 3, 4))
    assert (difference[:at] == 0).all()
    assert (difference[at : at + 3] > 1e-4).all()


def test_centred_frames_see_both_ways(context: ClipContext) -> None:
    layer = convolution(context, causal=False, num_convs=1)
    changed = frames_of(stream()).clone()
    changed[:, 2] += Rng(3).normal(CHANNELS, 3, 4)
    difference = (frames_of(layer(changed.flatten(0, 1))) - frames_of(layer(stream()))).abs().amax(dim=(0, 2, 3, 4))
    assert (difference[1:4] > 1e-4).all()
    assert (difference[[0, 4]] == 0).all()


def test_the_first_frame_of_a_film_is_untouched_and_only_that(context: ClipContext) -> None:
    layer = convolution(context, causal=True)
    change = frames_of(layer(stream()) - stream()).abs().amax(dim=(0, 2, 3, 4))
    assert change[0] == 0
    assert (change[1:] > 1e-4).all()


@pytest.mark.parametrize("size", range(1, FRAMES + 1))
@pytest.mark.parametrize("num_convs", [1, 3])
def test_chunks_of_any_size_equal_the_whole(size: int, num_convs: int, context: ClipContext) -> None:
    layer = convolution(context, causal=True, num_convs=num_convs)
    whole, state, parts = layer(stream()), StreamState(), []
    for chunk in frames_of(stream()).split(size, dim=1):
        with context.clip(chunk.shape[1], state):
            parts.append(layer(chunk.flatten(0, 1)).unflatten(0, (BATCH, -1)))
    torch.testing.assert_close(torch.cat(parts, dim=1), frames_of(whole), atol=1e-6, rtol=0)
    assert state.num_frames_seen == FRAMES


@pytest.mark.parametrize("causal", [True, False])
def test_how_numbers_lie_in_memory_changes_nothing(causal: bool, context: ClipContext) -> None:
    layer, channels_last = convolution(context, causal=causal), torch.channels_last
    out = layer(stream().to(memory_format=channels_last))
    assert out.is_contiguous(memory_format=channels_last)  # else every convolution after it would turn it round again
    torch.testing.assert_close(out, layer(stream()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [3, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_a_convolution_in_time(
    side: int, layout: torch.memory_format, context: ClipContext
) -> None:
    """Torch has one kernel for small planes and another for large ones."""
    layer = TemporalConvolution(CHANNELS, context, "block", num_convs=1, normalize=False, causal=False)
    conv = moved(layer).requires_grad_(True).convs[0]
    x = Rng(3).normal(FRAMES, CHANNELS, side, side)[0].to(memory_format=layout).requires_grad_(True)
    layer(x).sin().sum().backward()
    found = [x.grad, conv.weight.grad, conv.bias.grad]
    x.grad = conv.weight.grad = conv.bias.grad = None
    kernel = conv.weight.view(CHANNELS, 3, CHANNELS).transpose(1, 2)[..., None, None]
    branch = F.conv3d(F.silu(x).transpose(0, 1)[None], kernel, conv.bias, padding=(1, 0, 0))
    (x + branch[0].transpose(0, 1)).sin().sum().backward()
    for gradient, expected in zip(found, [x.grad, conv.weight.grad, conv.bias.grad], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_agree_with_finite_differences(causal: bool, frozen: bool, context: ClipContext) -> None:
    """Of batches and of a branch of several convolutions too, and where only the input learns."""
    layer = convolution(context, causal=causal).double().requires_grad_(not frozen)
    x = stream().double()[..., :2].requires_grad_(True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_under_autocast_are_those_of_float32_rounded(causal: bool, context: ClipContext) -> None:
    layer, found = convolution(context, causal=causal).requires_grad_(True), {}
    for is_enabled in (False, True):
        layer.zero_grad()
        x = stream().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            out = layer(x)
        out.float().square().sum().backward()
        found[is_enabled] = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    for exact, rounded in zip(found[False], found[True], strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_past_that_was_saved_goes_on_as_the_one_in_memory(context: ClipContext) -> None:
    """Files hold channels first."""
    layer, x = convolution(context, causal=True), stream().to(memory_format=torch.channels_last)
    state = StreamState()
    with context.clip(FRAMES, state):
        layer(x)
    saved = StreamState({name: past.contiguous().clone() for name, past in state.tensors.items()}, FRAMES)
    found = []
    for past in (state, saved):
        with context.clip(FRAMES, past):
            found.append(layer(x))
    assert torch.equal(*found)


def test_a_state_holds_copies_of_two_frames(context: ClipContext) -> None:
    layer, state = convolution(context, causal=True), StreamState()
    with context.clip(FRAMES, state):
        layer(stream())
    assert set(state.tensors) == {"block.0", "block.1"}
    for past in state.tensors.values():
        assert past.shape == (BATCH, 2, CHANNELS, 3, 4)
        assert past.untyped_storage().nbytes() == past.numel() * past.element_size()
    kept = state.tensors["block.0"].clone()
    with context.clip(FRAMES, detached := state.detach()):
        layer(stream() + 1)
    assert torch.equal(state.tensors["block.0"], kept)
    assert state.num_frames_seen == FRAMES
    assert detached.num_frames_seen == 2 * FRAMES


def test_clips_of_one_frame_pass_unchanged(context: ClipContext) -> None:
    for layer in (convolution(context, causal=False), convolution(context, causal=True), attention(context)):
        with context.clip(1):
            assert torch.equal(layer(stream()), stream())


def test_a_failed_pass_leaves_the_context_and_the_count_as_they_were(context: ClipContext) -> None:
    state = StreamState()
    with pytest.raises(ZeroDivisionError), context.clip(3, state):
        raise ZeroDivisionError
    assert (context.num_frames, context.state, state.num_frames_seen) == (FRAMES, None, 0)


def test_clips_of_a_batch_do_not_mix(context: ClipContext) -> None:
    for layer in (convolution(context, causal=True), convolution(context, causal=False), attention(context)):
        alone = layer(stream()[:FRAMES])
        torch.testing.assert_close(layer(stream())[:FRAMES], alone, atol=1e-6, rtol=1e-5)


def test_places_do_not_mix(context: ClipContext) -> None:
    changed = stream()
    changed[..., 0, 0] += 1
    for layer in (attention(context),):
        difference = (layer(changed) - layer(stream())).abs().amax(dim=(0, 1))
        assert difference[0, 0] > 0
        assert difference.flatten()[1:].max() == 0


@pytest.mark.parametrize("with_positions", [True, False])
def test_attention_knows_the_order_by_its_positions_alone(
    with_positions: bool, context: ClipContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_positions:
        monkeypatch.setattr(
            attention_module, "sinusoidal_positions", lambda frames, channels, device: torch.zeros(frames, channels)
        )
    layer, order = attention(context), torch.tensor([3, 0, 4, 1, 2])
    before = frames_of(layer(stream()))[:, order]
    after = frames_of(layer(frames_of(stream())[:, order].flatten(0, 1)))
    assert torch.allclose(before, after, atol=1e-5) is not with_positions


def test_attention_equals_torchs_own(context: ClipContext) -> None:
    layer = attention(context)
    witness = nn.MultiheadAttention(CHANNELS, 2, bias=True, batch_first=True).requires_grad_(False)
    witness.in_proj_weight.copy_(layer.to_qkv.weight)
    witness.in_proj_bias.zero_()
    witness.out_proj.weight.copy_(layer.to_out.weight)
    witness.out_proj.bias.copy_(layer.to_out.bias)
    tokens = frames_of(stream()).permute(0, 3, 4, 1, 2).flatten(0, 2)  # [b*h*w t c]
    positions = attention_module.sinusoidal_positions(FRAMES, CHANNELS, torch.device("cpu"))
    inside = F.layer_norm(tokens, (CHANNELS,), layer.norm.weight, layer.norm.bias) + positions
    expected = tokens + witness(inside, inside, inside)[0]
    found = frames_of(layer(stream())).permute(0, 3, 4, 1, 2).flatten(0, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_positions_differ_and_stay_bounded() -> None:
    for channels in (7, 8):
        positions = attention_module.sinusoidal_positions(64, channels, torch.device("cpu"))
        assert positions.shape == (64, channels)
        assert positions.abs().max() <= 1
        assert torch.pdist(positions).min() > 0.1


def test_heads_must_divide_the_width(context: ClipContext) -> None:
    with pytest.raises(ValueError, match="num_heads=3 does not divide channels=8"):
        TemporalAttention(CHANNELS, context, num_heads=3)


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (64, 32), (16, 8), (6, 3), (7, 1), (1, 1)])
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_copies_of_a_layer_share_a_context_of_their_own(context: ClipContext) -> None:
    layers = nn.ModuleList([convolution(context, causal=True), attention(context)])
    twin = copy.deepcopy(layers)
    assert twin[0].context is twin[1].context
    assert twin[0].context is not context
