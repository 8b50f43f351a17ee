"""Encoders and decoders of films: cut anyhow, saved and resumed anywhere, they code the same film."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentvid.autoencoders.base import BaseAutoencoder, FilmDecoder, FilmEncoder, first_frames
from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.tiling import Plan
from latentvid.autoencoders.video import VIDEO_NETWORKS, VideoAutoencoder
from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.rng import Rng
from tests.autoencoders.small_networks import grown, image_network
from tests.autoencoders.small_video_networks import KINDS as VIDEO_KINDS
from tests.autoencoders.small_video_networks import video_network

KINDS = (*VIDEO_KINDS, "kl", "grown-kl", "grown-tiny")
SIZE, TILE, OVERLAP = (4, 7), (4, 5), 3
"""In latents; two tiles, side by side."""
FRAMES = 20
CUT = (1, 2, 2, 7)
"""Frames of each push, or latents."""

Coder = FilmEncoder | FilmDecoder


def autoencoder(kind: str, *, tiled: bool = False) -> BaseAutoencoder:
    """Return a fresh autoencoder, in passes of one and the same size on every machine."""
    if kind in VIDEO_KINDS:
        network = video_network(kind)
        found: BaseAutoencoder = VIDEO_NETWORKS.get(type(network).__name__)(network)
        frames = found.pass_frames if isinstance(found, VideoAutoencoder) else 0
    else:
        plain, _, name = kind.rpartition("-")
        found, frames = grown(name, trained=True) if plain else ImageAutoencoder(image_network(name)), 2
    vars(found).update(_encode_cost=Cost(1, 0), _decode_cost=Cost(1, 0))
    if tiled:
        found.max_memory = 1 << 40
        found._plan = lambda *_: Plan(frames, TILE, SIZE, OVERLAP)  # type: ignore[attr-defined]
    return found


def pixels(network: BaseAutoencoder) -> tuple[int, int]:
    """Return a size that has to be padded."""
    height, width = (side * network.spatial_factor - 1 for side in SIZE)
    return height, width


def material(network: BaseAutoencoder, does: str) -> Tensor:
    """Return frames [t 3 h w] to encode, or latents [t c h w] to decode."""
    if does == "encode":
        return Rng(3).uniform(FRAMES, 3, *pixels(network))[0] * 2 - 1
    return Rng(4).normal(network.num_latents(FRAMES), network.latent_channels, *SIZE)[0]


def coder(network: BaseAutoencoder, does: str, state: Mapping[str, Tensor] | None = None) -> Coder:
    if does == "encode":
        return network.film_encoder(state)
    return network.film_decoder(state, size=pixels(network))


def cut(film: Tensor, does: str) -> list[Tensor]:
    """Cut a film into the parts that are pushed; the last is what is left."""
    parts = [part for part in film.tensor_split(torch.tensor(CUT).cumsum(0)) if len(part)]
    return parts if does == "encode" else [part.transpose(0, 1) for part in parts]


def coded(does: str, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1 if does == "encode" else 0)


def through_a_file(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    save_file(dict(state), path)
    return load_file(path)


@pytest.mark.parametrize("does", ["encode", "decode"])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_film_is_resumed_after_any_push(kind: str, tiled: bool, does: str, tmp_path: Path) -> None:
    """Byte by byte; every push by another object in another autoencoder, all of it equal to one stream."""
    network = autoencoder(kind, tiled=tiled)
    parts = cut(material(network, does), does)
    streamed = network.encode(parts) if does == "encode" else network.decode(parts, size=pixels(network))
    whole = coded(does, list(streamed))
    found, state = [], None
    for part in parts:
        now = coder(autoencoder(kind, tiled=tiled), does, state)
        found.append(now.push(part))
        state = through_a_file(now.state(), tmp_path / "state.safetensors")
    last = coder(autoencoder(kind, tiled=tiled), does, state)
    # A state is no more than a look at the film: what is asked for twice is there twice.
    again = last.state()
    assert state is not None
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert torch.equal(coded(does, [*found, last.finish()]), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_frames", [1, 6, 10])
def test_as_many_frames_come_back_however_they_are_pushed(kind: str, num_frames: int) -> None:
    network = autoencoder(kind)
    film = material(network, "encode")[:num_frames]
    encoder, decoder = network.film_encoder(), network.film_decoder(size=pixels(network))
    latents = torch.cat([*(encoder.push(frame[None]) for frame in film), encoder.finish()], dim=1)
    assert latents.shape[1] == network.num_latents(num_frames)
    video = [*(decoder.push(latent) for latent in latents.split(1, dim=1)), decoder.finish()]
    assert sum(len(part) for part in video) == network.grid.frames(latents.shape[1])
    back = torch.cat(list(first_frames(video, num_frames)))
    assert back.shape == film.shape
    whole = torch.cat(list(network.decode(network.encode([film]), size=pixels(network))))[:num_frames]
    torch.testing.assert_close(back, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("does", ["encode", "decode"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_film_of_nothing_is_nothing(kind: str, does: str) -> None:
    network = autoencoder(kind)
    before = coder(network, does)
    assert coder(network, does, before.state()).finish().numel() == before.finish().numel() == 0


def test_states_that_do_not_fit_are_refused() -> None:
    wan, svd = autoencoder("wan"), autoencoder("svd")
    decoder = wan.film_decoder()
    decoder.push(material(wan, "decode")[:2].transpose(0, 1))
    state = decoder.state()
    refused: list[Callable[[], object]] = [
        lambda: svd.film_decoder(state),
        lambda: wan.film_encoder(state),
        lambda: wan.film_decoder({**state, "num_in": torch.tensor(-1)}),
        lambda: wan.film_decoder({**state, "whole.num_frames_seen": torch.zeros(2)}),
        lambda: wan.film_decoder({**state, "size": torch.zeros(2)}),
        lambda: wan.film_decoder({name: value for name, value in state.items() if "whole" not in name}),
    ]
    for open_it in refused:
        with pytest.raises(CheckpointError, match="state"):
            open_it()
    with pytest.raises(UsageError, match="cannot go on"):
        decoder.push(material(wan, "decode")[:1, ..., :-1].transpose(0, 1))


@pytest.mark.parametrize("kind", ["wan", "grown-tiny"])
def test_a_film_stays_in_its_tiles(kind: str) -> None:
    for before, after in ((True, False), (False, True)):
        network, other = autoencoder(kind, tiled=before), autoencoder(kind, tiled=after)
        other.max_memory = 1 << 40
        parts = cut(material(network, "decode"), "decode")
        decoder = network.film_decoder()
        decoder.push(parts[0])
        decoder.push(parts[1])
        with pytest.raises(ResourceError, match="another size"):
            other.film_decoder(decoder.state()).push(parts[2])


@pytest.mark.parametrize("kind", ["ltx", "svd", "grown-kl"])
def test_passes_stay_as_long_as_they_were(kind: str) -> None:
    """More memory changes no bit of a film that was begun; less makes passes shorter."""
    network, roomier = autoencoder(kind), autoencoder(kind)
    video = {"_decode_cost": Cost(1e6, 0)}
    vars(network).update(video)
    parts = cut(material(network, "decode"), "decode")
    decoder = network.film_decoder()
    found = [decoder.push(part) for part in parts[:2]]
    assert (network.frames_per_decode(*pixels(network))) < roomier.frames_per_decode(*pixels(network))
    resumed = roomier.film_decoder(decoder.state())
    for each in (decoder, resumed):
        rest = [each.push(part) for part in parts[2:]]
        found.append(torch.cat([*rest, each.finish()]))
    assert torch.equal(found[-1], found[-2])
    seen = {name: int(value) for name, value in resumed.state().items() if name.endswith("frames_per_pass")}
    assert set(seen.values()) == {network.frames_per_decode(*pixels(network))}
