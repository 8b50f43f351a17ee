"""Teaching a text encoder its words: it learns them, stays where it was, and leaves the rest of the pipeline alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentvid.core.errors import UsageError
from latentvid.data.worlds import open_world
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.loop import LoopConfig, train
from latentvid.training.recipes import WordsRecipe
from latentvid.training.summary import summarize
from latentvid.training.words import WordsOptions, WordsTask
from tests.factories import pipeline, temporal_unet

CAPTIONS = [
    f"{sky} drift {way} over the {ground}"
    for sky in ("clouds", "stars")
    for way in ("left", "right")
    for ground in ("sea", "hills")
] * 40
OPTIONS = WordsOptions(batch=32, held_out=40)


def listening() -> LatentVideoPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pipeline(unet=TemporalUNet.from_image(temporal_unet(), temporal_advection=True))


def test_words_are_learned_and_hidden_states_stay(tmp_path: Path) -> None:
    built = listening()
    unet = {k: v.clone() for k, v in built.unet.state_dict().items() if not k.startswith("temporal.")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = WordsTask(built, CAPTIONS, OPTIONS, seed=0)
    with torch.no_grad():
        before = task.validate()
    assert before["moved"] == pytest.approx(0, abs=1e-9)
    assert before["words_right"] < 0.9
    train(task, LoopConfig(steps=120, lr=1e-2, warmup=5, ema_decay=0.9, validate_every=1000), tmp_path)
    with torch.no_grad():
        after = task.eval().validate()
    assert after["words_right_worst"] > 0.95
    assert after["moved"] < 0.3
    assert all(torch.equal(value, built.unet.state_dict()[name]) for name, value in unet.items())
    loaded = LatentVideoPipeline.from_pretrained(tmp_path / "export")
    assert loaded.unet.text_motion is not None
    assert loaded.unet.config.temporal_advection


def test_captions_without_a_difference_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing to tell apart"):
        WordsTask(listening(), ["clouds"] * 50, OPTIONS, seed=0)
    with pytest.raises(UsageError, match="leave none"):
        WordsTask(listening(), CAPTIONS[:40], OPTIONS, seed=0)


def test_the_recipe_grows_the_unet_it_starts_from(tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "init")
    recipe = WordsRecipe(init=str(tmp_path / "init"), num_captions=60, options=WordsOptions(held_out=20))
    counted = summarize(recipe)
    assert 0 < counted["trained_parameters"] < sum(counted["parameters"].values())
    task = recipe.task(tmp_path / "run", None)
    assert isinstance(task, WordsTask)
    spoken = list(open_world("sky").caption_corpus(60))
    assert len(task.ids) == len(spoken)
    assert set(task.batch(0)["ids"].shape[1:]) == {task.ids.shape[1]}
