"""Training an image autoencoder: batches by number, a falling loss, latents of unit variance in what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.training.autoencoder import AutoencoderOptions, AutoencoderTask
from latentvid.training.loop import LoopConfig, train
from latentvid.training.sources import KeptClips
from tests.factories import vae_kl

OPTIONS = AutoencoderOptions(batch=4, crop=16, validation_clips=2)


class Ramps:
    """Clips of colour ramps, which a few filters can draw."""

    def __init__(self, num_clips: int = 8, size: int = 20) -> None:
        self.num_clips, self.size = num_clips, size
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        self.asked.append(index)
        ramp = torch.linspace(0, 1, self.size)
        colours = Rng(index).uniform(2, 3, 1, 1)[0] * 200
        return (colours * ramp + colours.flip(0) * (1 - ramp)[:, None]).to(torch.uint8), []


def test_a_batch_is_a_function_of_its_number() -> None:
    one, other = (AutoencoderTask(vae_kl(), Ramps(), OPTIONS, seed=1) for _ in range(2))
    other.batch(5)
    assert torch.equal(one.batch(2), other.batch(2))
    assert one.batch(2).shape == (4, 3, 16, 16)
    assert one.batch(2).abs().max() <= 1
    assert not torch.equal(one.batch(2), one.batch(3))


def test_held_out_clips_are_not_trained_on() -> None:
    source = Ramps()
    task = AutoencoderTask(vae_kl(), source, OPTIONS, seed=1)
    for k in range(20):
        task.batch(k)
    assert set(source.asked) == set(range(6))


def test_the_loss_falls_and_latents_are_exported_with_unit_variance(tmp_path: Path) -> None:
    task = AutoencoderTask(vae_kl().train(), KeptClips(Ramps()), OPTIONS, seed=1)
    losses: list[float] = []
    config = LoopConfig(steps=25, lr=5e-3, warmup=0, ema_decay=0.0, log_every=5, validate_every=25)
    train(task, config, tmp_path, device="cpu", on_record=lambda r: losses.append(r["loss"]) if "loss" in r else None)
    assert losses[-1] < 0.7 * losses[0]
    vae = AutoencoderKL.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        mean = vae.encode(task._held_out()).latent_dist.mean
    latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)
    assert float(latents.mean()) == pytest.approx(0, abs=1e-3)


def test_kept_clips_are_asked_for_once_while_they_fit() -> None:
    source = Ramps()
    kept = KeptClips(source, max_bytes=3 * 2 * 3 * 20 * 20)
    for _ in range(2):
        for k in range(4):
            assert torch.equal(kept.clip(k)[0], Ramps().clip(k)[0])
    assert source.asked == [0, 1, 2, 3, 3]


def test_sources_that_are_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match="2 clips with 2 held out leave none"):
        AutoencoderTask(vae_kl(), Ramps(2), OPTIONS, seed=1)
    with pytest.raises(UsageError, match="crops of 16 pixels do not fit into clips of 12x12"):
        AutoencoderTask(vae_kl(), Ramps(size=12), OPTIONS, seed=1).batch(0)
