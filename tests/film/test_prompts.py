"""Prompts along a film."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import UsageError
from latentvid.denoisers.text import cross_fade
from latentvid.extension.plan import FilmPlan
from latentvid.film.generate import generate_film
from latentvid.film.prompts import PromptSchedule, read_prompts
from latentvid.film.reroll import reroll_window
from latentvid.pipeline import LatentVideoPipeline
from tests.film.tiny import STEPS, hashes

SCHEDULE = PromptSchedule(prompts={"0-9": "clouds", "10-": "sea at night"})


def test_windows_take_the_prompt_of_their_first_new_frame() -> None:
    windows = list(FilmPlan(30, 8, 2))
    assert [w.new_from for w in windows] == [0, 8, 14, 20, 26]
    assert [SCHEDULE.around(w)[1] for w in windows] == ["clouds", "clouds"] + ["sea at night"] * 3
    fades = [SCHEDULE.around(w, before=windows[k - 1] if k else None) for k, w in enumerate(windows)]
    assert [before != after for before, after in fades] == [False, False, True, False, False]


def test_a_fade_ends_at_the_new_words() -> None:
    before, after = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    faded = cross_fade(before, after, 8)
    assert faded.shape == (1, 8, 3, 4)
    assert torch.equal(faded[:, -1], after)
    assert torch.allclose(faded[0, :, 0, 0].diff(), torch.tensor(1 / 8))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompts: {1-5: a}", "should begin at frame 0"),
        ("prompts: {0-5: a, 7-: b}", "should begin at frame 6"),
        ("prompts: {0-: a, 0-: b}", "given twice"),
        ("prompts: {0-5: a, 3-: b}", "should begin at frame 6"),
        ("prompts: {0-x: a}", "no frame range"),
        ("prompts: {0-5: a}\ntransition: melt", "'fade' or 'cut'"),
        ("prompts: {}", "at least one"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_prompts(tmp_path / "p.yaml")


def test_what_is_cut_off_a_prompt_is_told_with_its_place(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    long = f"clouds {'and rain ' * 12}and SNOW"
    file = tmp_path / "p.yaml"
    for text, line in (
        (f"prompts:\n  0-9: calm\n  '10-': {long}\n", ", line 3"),
        (f"prompts: {{0-9: calm, 10-: {long}}}", ""),
    ):
        file.write_text(text)
        schedule = read_prompts(file)
        name = re.escape(f"prompt of frames 10- ({file}{line})")
        with pytest.warns(UserWarning, match=f"the {name} is longer than the 32 tokens .*SNOW") as told:
            generate_film(
                pipeline, long, tmp_path / "film.mp4", prompts=schedule, num_frames=1, overwrite=True, **STEPS
            )
        assert len(told) == 1
    with pytest.warns(UserWarning, match="the negative prompt is longer") as told:
        generate_film(pipeline, "", tmp_path / "b.mp4", negative_prompt=long, num_frames=20, **STEPS)
    assert len(told) == 1
    for prompt, expected in (("sea", 1), (long, 1), (None, 1)):  # equal texts are told once
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            report = reroll_window(tmp_path / "b.run", 1, seed=5, prompt=prompt, pipeline=pipeline)
        assert ["SNOW" in str(each.message) for each in told] == [True] * expected
        assert report.notes[0] == "window 1 was made with the seed 5"


def test_a_film_of_two_scenes(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    wanted = {"num_frames": 20, **STEPS}
    generate_film(pipeline, "clouds", tmp_path / "one.mp4", **wanted)
    generate_film(pipeline, "", tmp_path / "two.mp4", prompts=SCHEDULE, **wanted)
    cut = SCHEDULE.model_copy(update={"transition": "cut"})
    generate_film(pipeline, "", tmp_path / "cut.mp4", prompts=cut, **wanted)
    one, two, cut_ = (
        list(hashes(tmp_path / f"{name}.run", "windows/*.mp4").values()) for name in ("one", "two", "cut")
    )
    assert one[:2] == two[:2] == cut_[:2]
    assert len({one[2], two[2], cut_[2]}) == 3


def test_scenes_that_follow_each_other_are_guided_fully(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    """What the rule says of windows that go on is for films of one prompt."""
    given = {"rule": {"kind": "context", "overlap": 2, "guidance_scale": 1.0}, "num_frames": 14, **STEPS}
    schedule = PromptSchedule(prompts={"0-7": "clouds", "8-": "stars"}, transition="cut")
    films = {
        "own": {"prompts": schedule},
        "full": {"prompts": schedule, "guidance_scale": 3.0},
        "one": {"prompt": "clouds"},
        "one-full": {"prompt": "clouds", "guidance_scale": 3.0},
    }
    for name, words in films.items():
        more = dict(words)
        generate_film(pipeline, more.pop("prompt", ""), tmp_path / f"{name}.mp4", **more, **given)  # type: ignore[arg-type]
    found = {name: LatentFile(tmp_path / f"{name}.run/windows/000001.safetensors").read() for name in films}
    assert torch.equal(found["own"], found["full"])
    assert not torch.allclose(found["one"], found["one-full"], atol=1e-3)
