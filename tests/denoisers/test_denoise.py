"""The U-Net as a denoiser: a network that knows the answer gives it back, whatever it predicts; guidance; text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latentvid.core.levels import Level, NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.denoisers.denoise import unet_denoiser
from latentvid.denoisers.text import embed, tokenize
from latentvid.sampling.guidance import classifier_free
from latentvid.sampling.prediction import PREDICTION_TYPES, noisy, target
from tests.factories import TEXT_WIDTH, temporal_unet, text_parts

SHAPE = (2, 3, 4, 4, 4)  # b c t h w
VP = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def schedule_for(prediction_type: str) -> NoiseSchedule:
    return NoiseSchedule.from_config(FLOW if prediction_type == "flow" else {**VP, "prediction_type": prediction_type})


class Oracle:
    """Stands for a trained U-Net: knows clean and eps, and predicts what it was asked to."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, clean: Tensor, eps: Tensor, schedule: NoiseSchedule) -> None:
        self.clean, self.eps, self.schedule = clean, eps, schedule
        self.told: list[Tensor] = []

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        self.told.append(timestep)
        level = self.schedule.level(timestep)
        return target(self.clean.double(), self.eps.double(), level, self.schedule.prediction_type).float()


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_network_that_knows_gives_the_clean_clip(prediction_type: str, per_frame: bool) -> None:
    schedule = schedule_for(prediction_type)
    clean, eps = (Rng([seed, seed + 1]).normal(*SHAPE[1:]) for seed in (1, 5))
    timestep = torch.tensor([[0.0, 700, 700, 700], [20, 900, 900, 900]]) if per_frame else torch.tensor(700.0)
    level = schedule.level(timestep)
    oracle: Any = Oracle(clean, eps, schedule)
    found = unet_denoiser(oracle, schedule, torch.zeros(2, 5, TEXT_WIDTH))(noisy(clean, eps, level), level)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    assert torch.equal(oracle.told[0], timestep.expand(2, 4))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@torch.no_grad()
def test_guidance_in_one_call_equals_two(rescale: float) -> None:
    unet, schedule = temporal_unet(), schedule_for("flow")
    words, null = (Rng([seed, seed + 1]).normal(5, TEXT_WIDTH) for seed in (1, 5))
    x = Rng([7, 8]).normal(*SHAPE[1:])
    alone = [unet_denoiser(unet, schedule, each) for each in (words, null)]
    expected = classifier_free(alone[0], alone[1], 3.0, rescale=rescale)
    found = unet_denoiser(unet, schedule, words, null_text=null, guidance_scale=3.0, guidance_rescale=rescale)
    for timestep in (torch.tensor(600.0), torch.tensor([[0.0, 600, 600, 600]] * 2)):
        level = schedule.level(timestep)
        torch.testing.assert_close(found(x, level), expected(x, level), atol=1e-5, rtol=1e-4)


def test_a_scale_of_one_asks_once() -> None:
    clean = Rng([1, 2]).normal(*SHAPE[1:])
    schedule = schedule_for("flow")
    oracle: Any = Oracle(clean, clean, schedule)
    words = torch.zeros(2, 5, TEXT_WIDTH)
    unet_denoiser(oracle, schedule, words, null_text=words)(clean, schedule.level(torch.tensor(500.0)))
    assert [len(timestep) for timestep in oracle.told] == [2]


@torch.no_grad()
def test_half_precision_stays_inside() -> None:
    unet, seen = temporal_unet().bfloat16(), []
    unet.register_forward_pre_hook(lambda _, given: seen.extend(value.dtype for value in given))
    denoise = unet_denoiser(unet, schedule_for("flow"), torch.zeros(2, 5, TEXT_WIDTH))
    out = denoise(Rng([1, 2]).normal(*SHAPE[1:]), schedule_for("flow").level(torch.tensor(501.0)))
    assert out.dtype == torch.float32
    # Timesteps stay in float32: bfloat16 cannot tell 501 from 500.
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_level_types_do_not_matter() -> None:
    level = Level(torch.tensor(0.5), torch.tensor(0.5), torch.tensor(500))
    clean = Rng([1, 2]).normal(*SHAPE[1:])
    oracle: Any = Oracle(clean, clean, schedule_for("flow"))
    found = unet_denoiser(oracle, schedule_for("flow"), torch.zeros(2, 5, TEXT_WIDTH))(clean, level)
    torch.testing.assert_close(found, clean)


def test_prompts_become_tokens_of_one_length_and_embeddings() -> None:
    tokenizer, encoder = text_parts()
    ids = tokenize(tokenizer, ["", "clouds", "clouds over hills at dusk " * 20])
    assert ids.shape == (3, tokenizer.model_max_length)
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids == tokenizer.eos_token_id).any(dim=1).all()
    words = embed(tokenizer, encoder, ["clouds", "stars"])
    assert words.shape == (2, tokenizer.model_max_length, TEXT_WIDTH)
    assert not words.requires_grad
    assert not torch.allclose(words[0], words[1])
    torch.testing.assert_close(words[:1], embed(tokenizer, encoder, ["clouds"]))
