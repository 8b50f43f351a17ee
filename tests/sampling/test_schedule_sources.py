"""A scheduler in memory and the same scheduler from disk mean the same noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from latentvid.core.errors import CheckpointError
from latentvid.core.levels import NoiseSchedule
from tests import factories


def test_a_scheduler_made_in_memory_keeps_its_meaning_when_saved(tmp_path: Path) -> None:
    # A config gets its class only when it is saved; read without it, a flow model once trained as epsilon.
    pipeline = factories.pipeline()
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=2.0), DDIMScheduler(beta_schedule="scaled_linear")):
        pipeline.register_modules(scheduler=scheduler)
        before = pipeline.schedule
        scheduler.save_pretrained(tmp_path)
        pipeline.register_modules(scheduler=type(scheduler).from_pretrained(tmp_path))
        after = pipeline.schedule
        assert (before.kind, before.prediction_type, before.shift) == (after.kind, after.prediction_type, after.shift)
        torch.testing.assert_close(before.levels(7).sigma, after.levels(7).sigma)


def test_a_config_without_class_and_betas_is_refused() -> None:
    with pytest.raises(CheckpointError, match="names no class"):
        NoiseSchedule.from_config(dict(FlowMatchEulerDiscreteScheduler(shift=2.0).config))
