"""Clips to latent files and back, through a small network: frames, times, sizes, batches, and what goes wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from diffusers import AutoencoderTiny

from latentvid.autoencoders.codec import decode_file, encode_file, recorded_source
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import LatentFile
from latentvid.autoencoders.load import load_autoencoder
from latentvid.core.errors import CheckpointError, InputError
from latentvid.core.rng import Rng
from latentvid.video.pixels import frames_to_tensor
from latentvid.video.reader import open_video
from latentvid.video.sound import Sound
from latentvid.video.writer import VideoWriter
from tests.autoencoders.small_networks import grown, image_network
from tests.video.test_remux import sound

FPS = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def network() -> ImageAutoencoder:
    return grown("tiny", trained=True)


def clip(path: Path, *, frames: int = 21, size: tuple[int, int] = (22, 35), irregular: bool = False) -> Path:
    video = Rng(0).uniform(frames, 3, *size)[0] * 2 - 1
    times = [Fraction(k * k + 4 * k, 90) for k in range(frames)] if irregular else None
    with VideoWriter(
        path, fps=FPS, width=size[1], height=size[0], codec="h264-lossless", is_variable_rate=irregular
    ) as writer:
        writer.write(video, times)
    return path


@pytest.mark.parametrize("irregular", [False, True])
def test_frames_times_and_size_come_back(network: ImageAutoencoder, tmp_path: Path, irregular: bool) -> None:
    source = clip(tmp_path / "a.mp4", irregular=irregular)
    done: list[int] = []
    encode_file(network, source, tmp_path / "a.safetensors", on_frames=done.append)
    assert sum(done) == 21
    file = LatentFile(tmp_path / "a.safetensors")
    assert file.is_regular != irregular
    decode_file(network, file.path, tmp_path / "b.mp4", codec="h264-lossless")
    with open_video(source) as before, open_video(tmp_path / "b.mp4") as after:
        assert (after.meta.width, after.meta.height) == (35, 22)
        # The mean rate of irregular clips depends on how long the last frame is shown, which times do not tell.
        assert irregular or after.meta.fps == before.meta.fps
        pairs = list(zip(before.frames(), after.frames(), strict=True))
    assert [a.time_s for a, _ in pairs] == [b.time_s for _, b in pairs]
    # What was written is what the network gives for the whole clip at once.
    latents = torch.cat(list(network.encode([frames_to_tensor([a for a, _ in pairs])])), dim=1)
    torch.testing.assert_close(file.read(), latents, atol=1e-5, rtol=0)
    video = torch.cat(list(network.decode([latents], size=(22, 35))))
    torch.testing.assert_close(frames_to_tensor([b for _, b in pairs]), video, atol=1.01 / 127.5, rtol=0)


def test_variances_are_kept_where_there_are_any(tmp_path: Path) -> None:
    kl = ImageAutoencoder(image_network("kl"))
    encode_file(kl, clip(tmp_path / "a.mp4", frames=3), tmp_path / "a.safetensors")
    file = LatentFile(tmp_path / "a.safetensors")
    with open_video(tmp_path / "a.mp4") as reader:
        found = list(kl.encode_posterior([frames_to_tensor(reader.frames())]))
    assert found[0][1] is not None
    torch.testing.assert_close(file.read(logvar=True), found[0][1], atol=1e-5, rtol=0)


def test_a_wrong_decoder_or_a_damaged_file_makes_no_video(network: ImageAutoencoder, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    encode_file(network, clip(tmp_path / "a.mp4", frames=3), path)
    other = ImageAutoencoder(image_network("tiny", seed=7))
    with pytest.raises(CheckpointError, match="--any-vae"):
        decode_file(other, path, tmp_path / "b.mp4")
    decode_file(other, path, tmp_path / "other.mp4", any_vae=True)
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        decode_file(network, path, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("start", [0, Fraction(7, 10), 26 * 3600])
def test_sound_and_the_shape_of_pixels_come_back(network: ImageAutoencoder, tmp_path: Path, start: Fraction) -> None:
    music = sound(tmp_path / "music.m4a", 4)
    video = Rng(0).uniform(12, 3, 16, 24)[0] * 2 - 1
    times = [start + Fraction(k * k + 4 * k, 90) for k in range(12)]
    ratio = Fraction(4, 3)
    along = Sound(music, -Fraction(start), times[-1] + 1)
    with VideoWriter(
        tmp_path / "a.mkv", fps=5, width=24, height=16, is_variable_rate=True, sample_aspect_ratio=ratio, sound=along
    ) as writer:
        writer.write(video, times)
    encode_file(network, tmp_path / "a.mkv", tmp_path / "latents" / "a.safetensors")
    file = LatentFile(tmp_path / "latents" / "a.safetensors")
    (tmp_path / "a.mkv").rename(tmp_path / "latents" / "a.mkv")
    source = recorded_source(file)
    done = decode_file(network, file.path, tmp_path / "b.mkv", audio_from=source)
    assert done["has_audio"]
    with open_video(source) as before, open_video(tmp_path / "b.mkv") as after:
        assert (after.meta.sample_aspect_ratio, after.meta.has_audio) == (ratio, True)
        shift = before.meta.start_s if start > 1 else 0
        assert [f.time_s for f in after.frames()] == [f.time_s - shift for f in before.frames()]
    # Sound and pictures stand to each other as they did.
    assert abs((first_sound(source) - first_sound(tmp_path / "b.mkv")) - shift) < Fraction(1, 500)
    source.write_bytes(source.read_bytes() + b"x")
    with pytest.raises(InputError, match="has changed"):
        recorded_source(file)
    source.unlink()
    with pytest.raises(InputError, match="is gone"):
        recorded_source(file)


def first_sound(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return next(Fraction(p.pts * p.time_base) for p in container.demux(audio=0) if p.size and p.pts is not None)


def test_what_the_reader_did_to_the_pictures_is_recorded(network: ImageAutoencoder, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", frames=60, size=(64, 64))
    source.write_bytes(source.read_bytes()[:-4000])
    with pytest.raises(InputError):
        encode_file(network, source, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    encode_file(network, source, tmp_path / "a.safetensors", allow_truncated=True)
    meta = LatentFile(tmp_path / "a.safetensors").meta
    assert meta.is_truncated
    assert "cut short" in meta.source_notes


@pytest.mark.parametrize("name", ["taesd", "taef1"])
def test_a_real_clip_survives_real_weights(assets: Path, tmp_path: Path, name: str) -> None:
    network = load_autoencoder(assets / "weights" / name)
    with open_video(assets / "data" / "sky" / "00.mp4") as reader:
        video = frames_to_tensor(reader.frames(0, 3))
    decoded = torch.cat(list(network.decode(network.encode([video]))))
    diffusers_own = AutoencoderTiny.from_pretrained(assets / "weights" / name, local_files_only=True)
    with torch.no_grad():
        expected = diffusers_own.decode(diffusers_own.encode(video).latents).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=0)
    assert -10 * ((decoded - video) / 2).square().mean().log10() > 24
