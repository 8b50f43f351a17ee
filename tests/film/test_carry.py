"""What a window starts from: a film goes on from the file, in the latents of every kind of autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentvid.autoencoders.base import BaseAutoencoder
from latentvid.autoencoders.video import VIDEO_NETWORKS
from latentvid.core.rng import Rng
from latentvid.extension.rules import Tail
from latentvid.film.folder import Carry, load_carry, save_carry
from tests.autoencoders.small_networks import grown
from tests.autoencoders.small_video_networks import video_network

CPU = torch.device("cpu")


def autoencoder(kind: str) -> BaseAutoencoder:
    if kind == "temporal":
        return grown("tiny", trained=True)
    network = video_network(kind)
    found: BaseAutoencoder = VIDEO_NETWORKS.get(type(network).__name__)(network)
    return found


@pytest.mark.parametrize("kind", ["temporal", "svd", "cogvideox", "wan", "ltx", "hunyuan"])
def test_windows_are_decoded_from_one_carry_to_the_next(kind: str, tmp_path: Path) -> None:
    """As after a kill behind every window: bit for bit the film of one process."""
    network = autoencoder(kind)
    windows = Rng(4).normal(network.latent_channels, 9, 2, 3)[0].split(3, dim=1)
    whole = torch.cat(list(network.decode(windows)))
    assert len(whole) == network.grid.frames(9)
    save_carry(tmp_path / "0.safetensors", Carry())
    found = []
    for index, window in enumerate(windows):
        carry = load_carry(tmp_path / f"{index}.safetensors", CPU)
        decoder = autoencoder(kind).film_decoder(carry.decoder)
        found.append(decoder.push(window))
        save_carry(tmp_path / f"{index + 1}.safetensors", Carry(Tail(window[None]), decoder.state()))
    carry = load_carry(tmp_path / "3.safetensors", CPU)
    assert carry.tail is not None
    assert torch.equal(carry.tail.latents, windows[-1][None])
    found.append(autoencoder(kind).film_decoder(carry.decoder).finish())
    assert torch.equal(torch.cat(found), whole)


def test_a_carry_of_older_runs_opens(tmp_path: Path) -> None:
    """Their decoder's count of frames was a word of the file."""
    network = autoencoder("temporal")
    latents = Rng(4).normal(network.latent_channels, 6, 2, 3)[0]
    decoder = network.film_decoder()
    decoder.push(latents[:, :4])
    save_carry(tmp_path / "new.safetensors", Carry(None, decoder.state()))
    tensors = load_file(tmp_path / "new.safetensors")
    layers = {name: value for name, value in tensors.items() if value.is_floating_point()}
    assert len(layers) < len(tensors)
    save_file(layers, tmp_path / "old.safetensors", {"num_frames_seen": "4"})
    resumed = network.film_decoder(load_carry(tmp_path / "old.safetensors", CPU).decoder)
    assert torch.equal(resumed.push(latents[:, 4:]), decoder.push(latents[:, 4:]))
