"""Video autoencoders of others: N frames in, N out; cutting a film changes nothing; diffusers agrees."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.codec import decode_file, encode_file
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import LatentFile
from latentvid.autoencoders.load import load_autoencoder, load_image_autoencoder
from latentvid.autoencoders.pretrained.streams import repeat_last
from latentvid.autoencoders.video import VIDEO_NETWORKS, VideoAutoencoder
from latentvid.core.errors import CheckpointError, ResourceError
from latentvid.core.rng import Rng
from latentvid.core.shapes import VideoShape
from latentvid.evaluation.reconstruction import reconstruct
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter
from tests.autoencoders.small_networks import image_network
from tests.autoencoders.small_video_networks import CONFIGS, KINDS, video_network

SIZE = (12, 17)
FRAMES = 19
"""No number of frames that any of the architectures likes."""


def film(num_frames: int = FRAMES) -> Tensor:
    return Rng(3).uniform(num_frames, 3, *SIZE)[0] * 2 - 1


def adapt(network: nn.Module) -> VideoAutoencoder:
    return VIDEO_NETWORKS.get(type(network).__name__)(network)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(kind: str) -> nn.Module:
    return video_network(kind)


@pytest.fixture(scope="module")
def autoencoder(network: nn.Module) -> VideoAutoencoder:
    found = adapt(network)
    # Passes of one and the same size on every machine, and short ones.
    vars(found).update(_encode_cost=Cost(1, 0), _decode_cost=Cost(1, 0))
    return found


def encoded(autoencoder: VideoAutoencoder, video: Tensor, *, chunk: int = 100) -> Tensor:
    return torch.cat(list(autoencoder.encode(video.split(chunk))), dim=1)


def decoded(autoencoder: VideoAutoencoder, latents: Tensor, *, chunk: int = 100) -> Tensor:
    return torch.cat(list(autoencoder.decode(latents.split(chunk, dim=1), size=SIZE)))


def test_a_film_cut_anyhow_is_the_film(autoencoder: VideoAutoencoder) -> None:
    latents = encoded(autoencoder, film())
    assert latents.shape[1:] == autoencoder.latent_shape(VideoShape(1, FRAMES, *SIZE)).dims[2:]
    torch.testing.assert_close(encoded(autoencoder, film(), chunk=3), latents, atol=1e-5, rtol=0)
    video = decoded(autoencoder, latents)
    assert video.shape == (autoencoder.grid.frames(latents.shape[1]), 3, *SIZE)
    assert video.std() > 0.01
    for chunk in (1, 3):
        torch.testing.assert_close(decoded(autoencoder, latents, chunk=chunk), video, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_as_many_frames_come_back(autoencoder: VideoAutoencoder, num_frames: int) -> None:
    pairs = list(reconstruct(autoencoder, film(num_frames).split(4)))
    assert sum(len(source) for source, _ in pairs) == num_frames
    assert sum(len(back) for _, back in pairs) == num_frames


def test_diffusers_agrees(autoencoder: VideoAutoencoder, network: nn.Module, kind: str) -> None:
    """Of the film padded to a length that it takes; SVD's temporal norms are given statistics per frame."""
    factor = autoencoder.spatial_factor
    latents = encoded(autoencoder, film())
    padded = F.pad(film(), (0, -SIZE[1] % factor, 0, -SIZE[0] % factor), mode="replicate")
    padded = repeat_last(padded, autoencoder.grid.frames(latents.shape[1]), dim=0)
    clip = padded if kind == "svd" else padded.transpose(0, 1)[None]
    raw = network.encode(clip).latent_dist.mean
    shift, scale = (torch.tensor(f).view(-1, 1, 1, 1) for f in (autoencoder.shift_factor, autoencoder.scaling_factor))
    expected = ((raw.transpose(0, 1) if kind == "svd" else raw[0]) - shift) * scale
    torch.testing.assert_close(latents, expected, atol=5e-5, rtol=0)
    if kind == "svd":
        copy = video_network(kind)
        for name, module in list(copy.decoder.named_modules()):
            if name.endswith(("temporal_res_block.norm1", "temporal_res_block.norm2")):
                copy.decoder.get_submodule(name.rpartition(".")[0]).__setattr__(name[-5:], PerFrame(module))
        video = copy.decode(raw, num_frames=FRAMES).sample
    else:
        timestep = {"temb": torch.zeros(1)} if kind == "ltx0.9.5" else {}
        video = network.decode(raw, **timestep).sample[0].transpose(0, 1)
    video = video[..., : SIZE[0], : SIZE[1]].clamp(-1, 1)
    torch.testing.assert_close(decoded(autoencoder, latents), video, atol=5e-5, rtol=0)


class PerFrame(nn.Module):
    """A norm over [b c t h w] that sees one frame at a time."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


def test_a_clip_goes_to_a_file_and_back(kind: str, network: nn.Module, tmp_path: Path) -> None:
    if kind in ("ltx0.9.5", "wan2.2"):
        pytest.skip("the same class as another one")
    network.save_pretrained(tmp_path / "vae")
    autoencoder = load_autoencoder(tmp_path / "vae")
    assert all(torch.equal(v, autoencoder.weights.state_dict()[k]) for k, v in network.state_dict().items())
    with VideoWriter(tmp_path / "a.mkv", fps=Fraction(25), width=18, height=12, codec="h264-lossless") as writer:
        writer.write(F.pad(film(6), (0, 1)))
    done: list[int] = []
    encode_file(autoencoder, tmp_path / "a.mkv", tmp_path / "a.safetensors", on_frames=done.append)
    file = LatentFile(tmp_path / "a.safetensors")
    assert sum(done) == file.num_frames == 6
    assert file.num_latents == autoencoder.num_latents(6)
    assert file.meta.scaling_factor == autoencoder.scaling_factor
    assert file.is_regular
    decode_file(autoencoder, file.path, tmp_path / "b.mkv", codec="h264-lossless")
    with open_video(tmp_path / "a.mkv") as before, open_video(tmp_path / "b.mkv") as after:
        assert [f.time_s for f in after.frames()] == [f.time_s for f in before.frames()]
    with pytest.raises(CheckpointError, match="channels"):
        file.check_fits(ImageAutoencoder(image_network("tiny")))
    with pytest.raises(CheckpointError, match="cannot be trained"):
        load_image_autoencoder(tmp_path / "vae")


def test_a_file_whose_frames_and_latents_disagree_is_refused(tmp_path: Path) -> None:
    autoencoder = adapt(video_network("wan"))
    vars(autoencoder).update(_encode_cost=Cost(1, 0))
    with VideoWriter(tmp_path / "a.mkv", fps=Fraction(25), width=18, height=12, codec="h264-lossless") as writer:
        writer.write(F.pad(film(6), (0, 1)))
    encode_file(autoencoder, tmp_path / "a.mkv", tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    for word in (b'"temporal_factor": "1"', b'"temporal_factor": "2"'):
        (tmp_path / "b.safetensors").write_bytes(data.replace(b'"temporal_factor": "4"', word))
        with pytest.raises(CheckpointError, match="frame times"):
            LatentFile(tmp_path / "b.safetensors")


def test_networks_that_are_built_otherwise_are_refused(tmp_path: Path) -> None:
    video_network("ltx").save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_causal": False}))
    with pytest.raises(CheckpointError, match="not run here"):
        load_autoencoder(tmp_path / "vae")


@pytest.mark.parametrize("kind", ["svd", "wan"])
def test_a_pass_takes_what_the_memory_allows(kind: str) -> None:
    autoencoder = adapt(video_network(kind))
    one = autoencoder._decode_cost.frame_bytes * 64**2
    assert one > 0
    held = autoencoder._decode_cost.state_bytes * 64**2
    autoencoder.max_memory = int(held + 2.5 * one)
    assert autoencoder.frames_per_decode(64, 64) == 2 * autoencoder.pass_frames
    with pytest.raises(ResourceError, match="--max-memory"):
        autoencoder.frames_per_decode(256, 256)


def test_every_class_has_a_config_here() -> None:
    assert {config["_class_name"] for config in CONFIGS.values()} == set(VIDEO_NETWORKS)
