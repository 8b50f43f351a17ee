"""Frames and latents: spans make up the film, counting there and back agrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentvid.core.time import TimeGrid

GRIDS = st.sampled_from([TimeGrid(1, 1), TimeGrid(1, 4), TimeGrid(1, 8), TimeGrid(16, 16), TimeGrid(3, 2)])
COUNTS = st.integers(0, 10_000)


@given(GRIDS, st.integers(0, 50))
def test_spans_partition_the_film(grid: TimeGrid, latents: int) -> None:
    frames = [frame for latent in range(latents) for frame in grid.span(latent)]
    assert frames == list(range(grid.frames(latents)))
    assert all(len(grid.span(latent)) == (grid.step if latent else grid.first) for latent in range(latents))


@given(GRIDS, COUNTS)
def test_latents_and_frames_are_inverse(grid: TimeGrid, count: int) -> None:
    assert grid.latents(grid.frames(count)) == grid.whole_latents(grid.frames(count)) == count
    up, down = grid.latents(count), grid.whole_latents(count)
    assert grid.frames(down) <= count < grid.frames(down + 1)
    assert grid.frames(up) >= count
    assert up == 0 or grid.frames(up - 1) < count


@given(GRIDS, COUNTS)
def test_padding_fills_the_last_latent(grid: TimeGrid, frames: int) -> None:
    padded = frames + grid.padding(frames)
    assert padded == grid.frames(grid.latents(frames)) == grid.frames(grid.whole_latents(padded))
    assert 0 <= grid.padding(frames) < max(grid.first, grid.step)


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 0), (-1, 4)])
def test_a_latent_holds_a_frame_at_least(first: int, step: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        TimeGrid(first, step)
