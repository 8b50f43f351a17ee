"""Laws of the plan: windows cover the film once, and a longer film begins like a shorter one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentvid.core.errors import UsageError
from latentvid.extension.plan import FilmPlan

law = settings(deadline=None)  # a busy machine is no failure


@st.composite
def plans(draw: st.DrawFn) -> FilmPlan:
    window = draw(st.integers(1, 24))
    overlap = draw(st.integers(0, window - 1))
    given_frames = draw(st.one_of(st.just(0), st.integers(max(1, overlap), 60)))
    return FilmPlan(draw(st.integers(1, 400)), window, overlap, draw(st.booleans()), given_frames)


@law
@given(plans())
def test_new_frames_cover_the_film_exactly_once(plan: FilmPlan) -> None:
    made = [n for window in plan for n in range(window.new_from, window.keep_until)]
    assert made == list(range(plan.given, plan.given + plan.num_frames))


@law
@given(plans())
def test_windows_are_whole_and_every_one_adds_something(plan: FilmPlan) -> None:
    for k, window in enumerate(plan):
        assert window.index == k
        assert window.stop - window.start == plan.window
        assert window.start <= window.new_from < window.keep_until <= window.stop
        assert window.num_new > 0


@law
@given(plans())
def test_windows_overlap_their_predecessor_by_the_shared_frames(plan: FilmPlan) -> None:
    windows = list(plan)
    shared = 0 if plan.append_overlap else plan.overlap
    for before, after in pairwise(windows):
        assert after.start == before.stop - shared
        assert after.new_from == before.stop
    if plan.given:
        assert windows[0].start == plan.given - shared
        assert windows[0].new_from == plan.given
    else:
        assert (windows[0].start, windows[0].new_from) == (0, 0)


@law
@given(plans(), st.integers(1, 200))
def test_a_longer_film_begins_with_the_same_windows(plan: FilmPlan, more: int) -> None:
    longer = FilmPlan(plan.num_frames + more, plan.window, plan.overlap, plan.append_overlap, plan.given)
    assert len(longer) >= len(plan)
    for short, long in zip(plan, longer, strict=False):
        assert (short.start, short.stop, short.new_from) == (long.start, long.stop, long.new_from)
        assert short.keep_until <= long.keep_until


@law
@given(plans(), st.integers())
def test_windows_are_numbered_from_zero(plan: FilmPlan, index: int) -> None:
    if 0 <= index < len(plan):
        assert plan[index] == list(plan)[index]
    else:
        with pytest.raises(IndexError):
            plan[index]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 16, 4), "num_frames=0 must be at least 1"),
        ((8, 16, 16), "overlap=16 must be smaller than the window of 16 frames"),
        ((8, 16, -1), "overlap=-1"),
        ((8, 16, 4, False, 3), "the clip has 3 frames; continuing it takes 4"),
    ],
)
def test_plans_that_cannot_be_are_refused(arguments: tuple, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        FilmPlan(*arguments)
