"""Finetuning the temporal decoder: what learns, what is left alone, what is held out, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.temporal.inject import is_temporal
from latentvid.training.decoder import DecoderOptions, DecoderTask
from latentvid.training.latent_cache import LatentCache, build_cache
from tests.autoencoders.small_networks import image_network

CLIPS, FRAMES = 5, 6


class Clips:
    """Numbered noise."""

    def __len__(self) -> int:
        return CLIPS

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        return Rng(index).integers(0, 256, FRAMES, 3, 16, 16)[0].to(torch.uint8), []


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    image = ImageAutoencoder(image_network("tiny"))
    return build_cache(Clips(), image.encode_clip, tmp_path / "cache", keep_pixels=True)


def task(cache: LatentCache, **options: object) -> DecoderTask:
    network = TemporalAutoencoder.from_image(image_network("tiny"))
    chosen = DecoderOptions(num_frames=4, validation_clips=2, **options)  # type: ignore[arg-type]
    return DecoderTask(network, cache, chosen, seed=1)


def step(work: DecoderTask, count: int = 3) -> None:
    optimizer = torch.optim.SGD(work.parameter_groups(1e-2), lr=1e-2)
    for index in range(count):
        work(work.batch(index))[0].backward()
        optimizer.step()
        optimizer.zero_grad()


def test_batches_are_functions_of_their_number_and_leave_out_what_is_held_out(cache: LatentCache) -> None:
    work = task(cache, batch=3)
    trained = {cache.latents(k)[0, 0].numpy().tobytes() for k in range(CLIPS - 2)}
    for index in range(6):
        batch = work.batch(index)
        assert batch["video"].shape == (3, 4, 3, 16, 16)
        assert all(torch.equal(value, work.batch(index)[name]) for name, value in batch.items())
        for video, latents in zip(batch["video"], batch["latents"], strict=True):
            pick = next(k for k in range(CLIPS) if any(torch.equal(video[0], f) for f in cache.video(k)))
            assert cache.latents(pick)[0, 0].numpy().tobytes() in trained
            first = next(t for t in range(FRAMES) if torch.equal(video[0], cache.video(pick)[t]))
            assert torch.equal(latents, cache.latents(pick)[:, first : first + 4])


def test_only_the_temporal_layers_learn_and_stills_stay_as_they_were(cache: LatentCache) -> None:
    work = task(cache)
    before = {name: value.clone() for name, value in work.autoencoder.state_dict().items()}
    step(work)
    changed = {name for name, value in work.autoencoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(is_temporal(name) for name in changed)
    figures = work.validate()
    assert figures["image_psnr"] == figures["psnr_frame_by_frame"]
    assert figures["image_guard"] == 1
    assert figures["psnr"] != figures["psnr_frame_by_frame"]


def test_at_rest_it_measures_the_frame_by_frame_decoder(cache: LatentCache) -> None:
    figures = task(cache).validate()
    assert figures["psnr"] == pytest.approx(figures["psnr_frame_by_frame"], abs=1e-4)
    assert figures["flicker"] == pytest.approx(figures["flicker_frame_by_frame"], rel=1e-4)


def test_the_spatial_decoder_learns_where_asked_with_stills_and_under_guard(cache: LatentCache) -> None:
    work = task(cache, train_spatial=True, still_share=0.5)
    kinds = {work.batch(index)["video"].shape[:2] for index in range(12)}
    assert kinds == {(2, 4), (8, 1)}
    space = work.autoencoder.latent_space()
    baseline = work.validate()["psnr_frame_by_frame"]
    step(work, 8)
    assert work.autoencoder.latent_space() == space
    figures = work.validate()
    assert figures["psnr_frame_by_frame"] == baseline
    assert figures["image_psnr"] != baseline
    for parameter in work.autoencoder.decoder.parameters():
        parameter.data.zero_()
    assert work.validate()["image_guard"] == 0


def test_what_is_exported_loads(cache: LatentCache, tmp_path: Path) -> None:
    work = task(cache)
    step(work)
    work.eval()
    (tmp_path / "export").mkdir()
    work.export(tmp_path / "export")
    image_network("tiny").save_pretrained(tmp_path / "image")
    whole = load_autoencoder(tmp_path / "export")
    delta = load_autoencoder(tmp_path / "export" / "delta", image_autoencoder=tmp_path / "image")
    latents = cache.latents(0)[None]
    expected = work.autoencoder.decode_chunk(latents)
    assert torch.equal(whole.decode_chunk(latents), expected)
    assert torch.equal(delta.decode_chunk(latents), expected)
    assert json.loads((tmp_path / "export" / "metrics.json").read_text())["held_out"]["image_guard"] == 1


def test_nothing_to_train_on_is_said(cache: LatentCache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none to train on"):
        DecoderTask(TemporalAutoencoder.from_image(image_network("tiny")), cache, DecoderOptions(), seed=0)
    bare = build_cache(Clips(), ImageAutoencoder(image_network("tiny")).encode_clip, tmp_path / "bare")
    with pytest.raises(UsageError, match="without pixels"):
        task(bare)
