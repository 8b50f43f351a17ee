"""The laws of the temporal decoder: the image network at rest, stills and first frames for ever, any chunking."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import VideoShape
from latentvid.temporal.context import StreamState
from latentvid.temporal.inject import is_temporal, temporal_parameters
from tests.autoencoders.small_networks import KINDS, grown, image_network

FRAMES = 5


def clip(frames: int = FRAMES, height: int = 12, width: int = 16, batch: int = 2) -> Tensor:
    return Rng(list(range(batch))).uniform(3, frames, height, width) * 2 - 1


def latents_of(network: ImageAutoencoder, frames: int = FRAMES) -> Tensor:
    return Rng([3, 4]).normal(network.latent_channels, frames, 4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_at_rest_it_is_the_image_network_frame_by_frame(kind: str) -> None:
    image, network = ImageAutoencoder(image_network(kind)), grown(kind, trained=False)
    latents = latents_of(network)
    assert torch.equal(network.decode_chunk(latents), image.decode_chunk(latents))
    assert torch.equal(network.encode_clip(clip()), image.encode_clip(clip()))


@pytest.mark.parametrize("kind", KINDS)
def test_model_space_is_the_image_networks_own(kind: str) -> None:
    raw_network = image_network(kind)
    network = ImageAutoencoder(image_network(kind))
    frame = clip(1)[:, :, 0]
    config = raw_network.config
    encoded = raw_network.encode(frame)
    raw = encoded.latents if kind == "tiny" else encoded.latent_dist.mean
    expected = (raw - (config.shift_factor or 0.0)) * config.scaling_factor
    latents = network.encode_clip(frame[:, :, None])
    torch.testing.assert_close(latents[:, :, 0], expected)
    torch.testing.assert_close(network.decode_chunk(latents)[:, :, 0], raw_network.decode(raw).sample)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_convs", [1, 2, 3])
def test_any_chunking_decodes_the_same_film(kind: str, num_convs: int) -> None:
    network = grown(kind, trained=True, temporal_num_convs=num_convs)
    latents = latents_of(network)
    whole = network.decode_chunk(latents)
    for size in range(1, FRAMES + 1):
        state = StreamState()
        parts = torch.cat([network.decode_chunk(part, state) for part in latents.split(size, dim=2)], dim=2)
        assert state.num_frames_seen == FRAMES
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_temporal_weights_change_every_frame_but_the_first(kind: str) -> None:
    image, network = ImageAutoencoder(image_network(kind)), grown(kind, trained=True)
    latents = latents_of(network)
    for state in (None, StreamState()):
        change = (network.decode_chunk(latents, state) - image.decode_chunk(latents)).abs().amax(dim=(0, 1, 3, 4))
        assert change[0] == 0
        assert (change[1:] > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_is_an_image_after_training_too(kind: str) -> None:
    image, network = ImageAutoencoder(image_network(kind)), grown(kind, trained=True)
    latents = latents_of(network, frames=1)
    assert torch.equal(network.decode_chunk(latents), image.decode_chunk(latents))
    assert torch.equal(network.decode_chunk(latents, StreamState()), image.decode_chunk(latents))


def test_frames_depend_on_the_past_only() -> None:
    network = grown("tiny", trained=True)
    latents = latents_of(network)
    changed = latents.clone()
    changed[:, :, 3] += 1
    difference = (network.decode_chunk(changed) - network.decode_chunk(latents)).abs().amax(dim=(0, 1, 3, 4))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_keep_the_image_networks_names(kind: str) -> None:
    image, network = image_network(kind), grown(kind, trained=False)
    names = set(network.state_dict())
    assert set(image.state_dict()) == {name for name in names if not is_temporal(name)}
    temporal = {name for name in names if is_temporal(name)}
    assert temporal
    assert all(name.startswith("decoder.") for name in temporal)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_no_bit(kind: str, tmp_path: Path) -> None:
    network = grown(kind, trained=True, temporal_num_convs=1)
    network.save_pretrained(tmp_path)
    again = TemporalAutoencoder.from_pretrained(tmp_path)
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    latents = latents_of(network)
    assert torch.equal(again.decode_chunk(latents), network.decode_chunk(latents))
    assert again.scaling_factor == network.scaling_factor
    assert again.shift_factor == network.shift_factor
    half = TemporalAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == half.decode_chunk(latents).dtype == torch.bfloat16


def test_a_copy_stands_on_its_own() -> None:
    network = grown("kl", trained=True)
    copied = copy.deepcopy(network)
    latents = latents_of(network)
    before = network.decode_chunk(latents)
    assert torch.equal(copied.decode_chunk(latents), before)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert torch.equal(network.decode_chunk(latents), before)
    assert (copied.decode_chunk(latents) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_gets_no_gradients_and_the_decoder_all(kind: str) -> None:
    network = grown(kind, trained=True).requires_grad_(True)
    network.freeze_encoder()
    network(clip(3)).square().mean().backward()
    with_gradients = {name for name, p in network.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("encoder.", "quant_conv.")) for name in with_gradients)
    assert with_gradients == {
        n for n, _ in network.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))
    }
    network.freeze_image()
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(temporal_parameters(network))


def test_gradients_flow_at_initialisation() -> None:
    network = grown("tiny", trained=False).requires_grad_(True)
    network.freeze_image()
    network.decode_chunk(latents_of(network)).square().mean().backward()
    last = [p.grad for name, p in temporal_parameters(network).items() if name.endswith("convs.1.weight")]
    assert last
    assert all(grad is not None and grad.abs().max() > 0 for grad in last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 16), (11, 13), (1, 3)])
def test_as_many_frames_of_the_same_size_come_back(kind: str, size: tuple[int, int]) -> None:
    network = grown(kind, trained=True)
    for frames in (1, 2, 5):
        video = clip(frames, *size, batch=1)[0].transpose(0, 1)
        latents = list(network.encode(video.split(2)))
        expected = network.latent_shape(VideoShape(1, frames, *size))
        assert torch.cat(latents, dim=1).shape == expected.dims[1:]
        decoded = torch.cat(list(network.decode(latents, size=size)))
        assert decoded.shape == video.shape
        assert decoded.abs().max() <= 1


def test_streams_do_not_depend_on_chunks_or_passes() -> None:
    network = grown("kl", trained=True)
    video = clip(7, batch=1)[0].transpose(0, 1)
    whole = torch.cat(list(network.encode([video])), dim=1)
    decoded = torch.cat(list(network.decode([whole])))
    cost = network._decode_cost
    network.max_memory = int(cost.pass_peak(192, 2) + 0.5 * cost.frame_bytes * 192)
    torch.testing.assert_close(torch.cat(list(network.encode(video.split(3))), dim=1), whole, atol=1e-5, rtol=0)
    parts = list(network.decode(whole.split(5, dim=1)))
    assert [len(part) for part in parts] == [2, 2, 1, 2]
    torch.testing.assert_close(torch.cat(parts), decoded, atol=1e-5, rtol=0)


def test_a_stream_goes_on_from_its_state() -> None:
    network = grown("tiny", trained=True)
    latents = latents_of(network)[0]
    whole = torch.cat(list(network.decode([latents])))
    decoder = network.film_decoder()
    first, rest = decoder.push(latents[:, :2]), decoder.push(latents[:, 2:])
    torch.testing.assert_close(torch.cat([first, rest]), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_posterior_samples_have_the_posteriors_moments_and_follow_the_frame_number() -> None:
    network = ImageAutoencoder(image_network("kl"))
    video = clip(3, batch=1)
    mean, logvar = network.posterior(video)
    assert logvar is not None
    count = 400
    samples = torch.cat([network.encode_clip(video, rng=Rng(seed)) for seed in range(count)])
    spread = (0.5 * logvar).exp()
    error = ((samples.mean(dim=0, keepdim=True) - mean) / spread * count**0.5).square().mean()
    assert abs(float(error) - 1) < 0.15
    torch.testing.assert_close((samples.std(dim=0) / spread[0]).mean(), torch.tensor(1.0), atol=0.02, rtol=0)
    later = network.encode_clip(video[:, :, 1:], rng=Rng(0), first_frame=1)
    torch.testing.assert_close(later, network.encode_clip(video, rng=Rng(0))[:, :, 1:], atol=1e-5, rtol=0)


def test_the_posterior_is_in_model_space() -> None:
    raw_network, network = image_network("kl"), ImageAutoencoder(image_network("kl"))
    raw = raw_network.encode(clip(1)[:, :, 0]).latent_dist
    mean, logvar = network.posterior(clip(1))
    assert logvar is not None
    torch.testing.assert_close((0.5 * logvar).exp()[:, :, 0], raw.std * 0.7)
    torch.testing.assert_close(mean[:, :, 0], (raw.mean - 0.2) * 0.7)
    assert ImageAutoencoder(image_network("tiny")).posterior(clip(1))[1] is None


def test_the_latent_space_is_the_encoders() -> None:
    image, network = ImageAutoencoder(image_network("kl")), grown("kl", trained=True)
    assert network.latent_space() == image.latent_space()
    network.decoder.conv_out.weight.data += 1
    assert network.latent_space() == image.latent_space()
    network.encoder.conv_in.weight.data += 1
    assert network.latent_space() != image.latent_space()
    assert ImageAutoencoder(image_network("kl", seed=5)).latent_space() != image.latent_space()


def test_it_cannot_be_grown_twice() -> None:
    with pytest.raises(UsageError, match="already"):
        TemporalAutoencoder.from_image(grown("tiny", trained=False))
