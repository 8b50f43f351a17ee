"""The sky world: frames are functions of scene and number, captions tell the truth, pixels give the attributes back."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.data.worlds import open_world, sky, worlds
from latentvid.data.worlds.measure import STILL_BELOW, measure, wind
from latentvid.data.worlds.sky_captions import COVERS, DIRECTIONS, GROUNDS, SPEEDS, TIMES

WORLD = open_world("sky")


def scene(index: int) -> sky.SkyScene:
    return sky.sample_scene(Rng(11).child(f"test/{index}"))


@pytest.mark.parametrize("name", worlds.kinds())
def test_every_world_renders_and_speaks(name: str) -> None:
    world = open_world(name)
    drawn = world.sample_scene(Rng(3))
    clip = world.render(drawn, 2, 24, 40)
    assert clip.shape == (2, 3, 24, 40)
    assert clip.dtype == np.uint8
    assert world.caption(drawn, Rng(0))
    assert list(islice(world.caption_corpus(5), 9))[4]


def test_turned_round_a_scene_starts_alike_and_moves_the_other_way() -> None:
    for k in range(6):
        one = scene(k)
        other = WORLD.turned_round(one)
        assert other.wind_direction != one.wind_direction
        assert WORLD.turned_round(other) == one
        clips = [WORLD.render(s, 9, 48, 48) for s in (one, other)]
        assert np.array_equal(clips[0][0], clips[1][0])
        assert not np.array_equal(clips[0][8], clips[1][8])
        assert WORLD.canonical_caption(one) != WORLD.canonical_caption(other)


def test_unknown_worlds_are_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="did you mean 'sky'"):
        open_world("skyy")


@pytest.mark.parametrize("ground", GROUNDS)
def test_frames_do_not_depend_on_which_others_are_rendered(ground: str) -> None:
    drawn = replace(scene(1), ground=ground, time_of_day="night")
    whole = sky.render(drawn, 7, 48, 64)
    assert np.array_equal(whole[4:], sky.render(drawn, 3, 48, 64, start_frame=4))


def test_equal_streams_give_equal_scenes_and_others_give_others() -> None:
    assert sky.sample_scene(Rng(5).child("a")) == sky.sample_scene(Rng(5).child("a"))
    assert sky.sample_scene(Rng(5).child("a")) != sky.sample_scene(Rng(5).child("b"))


def test_a_scene_looks_the_same_at_every_size() -> None:
    # By day: stars are points, and no smaller than a pixel.
    for index in range(6):
        drawn = replace(scene(index), time_of_day="day")
        small, large = sky.render(drawn, 1, 32, 32), sky.render(drawn, 1, 128, 128)
        reduced = large.reshape(1, 3, 32, 4, 32, 4).mean((3, 5))
        assert np.abs(small - reduced).mean() < 3.5


def test_only_clouds_stars_and_water_move() -> None:
    drawn = replace(scene(2), ground="hills")
    clip = sky.render(drawn, 9, 64, 64).astype(int)
    assert np.array_equal(clip[0, :, 54:], clip[8, :, 54:])
    assert np.abs(clip[0, :, :30] - clip[8, :, :30]).mean() > 0.5


def test_motion_is_smooth() -> None:
    # No frame differs from the next by much more than the median: nothing pops or jumps.
    clip = sky.render(replace(scene(3), wind_speed="fast", wind=0.02), 40, 48, 48).astype(float)
    steps = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
    assert steps.max() < 2.5 * np.median(steps)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot render"):
        sky.render(scene(0), 0, 8, 8)
    with pytest.raises(ValueError, match="cannot render"):
        sky.render(scene(0), 1, 8, 8, start_frame=-1)


def test_every_attribute_occurs() -> None:
    drawn = [scene(i) for i in range(200)]
    for name, kinds in (
        ("time_of_day", TIMES),
        ("ground", GROUNDS),
        ("wind_direction", DIRECTIONS),
        ("wind_speed", SPEEDS),
        ("cloud_cover", COVERS),
    ):
        counts = [sum(getattr(one, name) == kind for one in drawn) for kind in kinds]
        assert min(counts) > 0.6 * len(drawn) / len(kinds), name


def test_captions_never_name_another_attribute_and_omit_some() -> None:
    named = 0
    for i in range(300):
        drawn = scene(i)
        text = sky.sky_captions.caption(drawn, Rng(i))
        words = text.replace(",", "").split()
        assert text == text.lower()
        assert 1 <= len(words) <= 24
        assert "  " not in text
        assert not text.startswith((" ", ","))
        for value, kinds in (
            (drawn.time_of_day, TIMES),
            (drawn.ground, GROUNDS),
            (drawn.wind_direction, DIRECTIONS),
            (drawn.wind_speed, SPEEDS),
            (drawn.cloud_cover, COVERS),
        ):
            assert not set(words) & (set(kinds) - {value}), text
        named += drawn.ground in words
    assert 0.84 < named / 300 < 0.96


def test_the_canonical_caption_names_everything() -> None:
    for i in range(40):
        drawn = scene(i)
        words = sky.sky_captions.canonical_caption(drawn).replace(",", "").split()
        for value in (drawn.time_of_day, drawn.ground, drawn.wind_direction, drawn.wind_speed, drawn.cloud_cover):
            assert value in words


@pytest.mark.parametrize("size", [64, 96])
def test_attributes_are_read_back_from_pixels(size: int) -> None:
    right = dict.fromkeys(("time_of_day", "ground", "wind_direction", "cloud_cover"), 0)
    count = 24
    for i in range(count):
        drawn = scene(1000 + i)
        reading = measure(sky.render(drawn, 16, size, size))
        for name in right:
            right[name] += reading[name] == getattr(drawn, name)  # type: ignore[literal-required]
    assert right["time_of_day"] >= count - 1
    assert right["wind_direction"] >= count - 1
    assert right["ground"] >= count - 1
    assert right["cloud_cover"] >= 0.6 * count


def test_reading_the_wind_agrees_with_a_picture_that_is_shifted_by_hand() -> None:
    # A witness that is no sky: a fixed noise picture, moved by whole pixels behind a still foreground.
    draw = np.random.default_rng(0)
    noise = torch.nn.functional.avg_pool2d(torch.from_numpy(draw.uniform(0, 255, (1, 1, 68, 260))), 5, 1)[0, 0]
    noise = (noise - noise.mean()) * 3 + 128
    for pixels in (-3, -1, 1, 2):
        starts = [80 - pixels * i for i in range(16)]
        clip = torch.stack([noise[:, a : a + 64] for a in starts])[:, None].expand(-1, 3, -1, -1).clamp(0, 255)
        clip = clip.to(torch.uint8).clone()
        clip[:, :, 40:, :] = 30
        assert wind(clip) * 64 == pytest.approx(pixels, abs=0.25)


def test_stillness_is_still() -> None:
    frame = torch.from_numpy(sky.render(scene(4), 1, 64, 64))
    still = frame.expand(16, -1, -1, -1)
    assert measure(still)["wind_direction"] == "still"
    assert measure(frame)["wind_px_per_frame"] == 0
    noisy = still.float() + 3 * torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    assert abs(wind(noisy.clamp(0, 255).to(torch.uint8))) < STILL_BELOW


def test_backwards_is_the_other_way() -> None:
    clip = sky.render(scene(5), 16, 64, 64)
    forth, back = measure(clip)["wind_px_per_frame"], measure(clip[::-1].copy())["wind_px_per_frame"]
    assert forth == pytest.approx(-back, abs=0.1)
    assert measure(clip[..., ::-1].copy())["wind_direction"] != measure(clip)["wind_direction"]


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        measure(torch.zeros(2, 3, 8, 8))
