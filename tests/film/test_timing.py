"""Rates: every new frame is shown once, in order, in the window that completes it, and films of ours go on in step."""

from __future__ import annotations

from fractions import Fraction

import pytest

from latentvid.film.timing import Timing, model_rate

RATES = [Fraction(12, 25), Fraction(12, 24), Fraction(1), Fraction(12, 8), Fraction(12000, 1001) / 60]


def test_rates_that_are_near_count_as_one() -> None:
    assert model_rate(Fraction(24), 24.5, "blend") == 1
    assert model_rate(Fraction(25), 12.0, "blend") == Fraction(12, 25)
    assert model_rate(Fraction(25), 12.0, "none") == 1


def test_the_nearest() -> None:
    at = lambda rate: [int(Timing(Fraction(rate), blend=False).shown_at(k)) for k in (1, 2, 3)]  # noqa: E731
    assert (at(1), at(2)) == ([1, 2, 3], [2, 4, 6])


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("rate", RATES)
def test_windows_share_the_frames_out(rate: Fraction, blend: bool) -> None:
    timing = Timing(rate, blend)
    windows = [list(timing.within(start, start + 6)) for start in range(1, 61, 6)]
    numbers = [number for window in windows for number in window]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= int(59 / rate)
    places = [timing.shown_at(number) for number in numbers]
    assert places == sorted(places)
    for start, window in zip(range(1, 61, 6), windows, strict=True):
        assert all(start - 1 <= timing.shown_at(number) <= start + 5 for number in window)


@pytest.mark.parametrize("shown", [16, 17, 18, 19])
@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("rate", RATES)
def test_a_second_film_goes_on_in_step(rate: Fraction, blend: bool, shown: int) -> None:
    whole = Timing(rate, blend)
    made = whole.needed(shown)
    second = Timing(rate, blend, shown, made)
    for number in range(1, 20):
        assert second.shown_at(number) == whole.shown_at(shown + number) - made
    first = [number for start in range(1, 30, 6) for number in second.within(start, start + 6)]
    assert first == list(range(1, len(first) + 1))
