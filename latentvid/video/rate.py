"""Frame rates as fractions: of what users type, and of the times that files state."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from fractions import Fraction

from latentvid.core.errors import UsageError

_NTSC = (24, 30, 48, 60, 120)
"""Nominal rates that broadcasting slows down by 1000/1001."""
_TYPICAL_SHARE = 0.6
"""Share of a clip's steps that must be alike for one of them to be typical."""
_JITTER = Fraction(1, 20)
"""Steps that differ from each other by no more than this share are alike."""
_SAME = Fraction(1, 200)
"""Rates that differ by no more than this share are one, measured with jitter."""
_FEW = 4
"""So few equal steps may be rounded ones."""
_MIN_TICKS = 8
"""Steps of fewer ticks differ by more than rounding where they differ."""
_MAX_SAMPLES = 20_000
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?:/(\d{1,9}))?")
_LOWEST, _HIGHEST = 0.001, 1000


def as_rate(fps: Fraction | float) -> Fraction:
    """Return a frame rate as a fraction; floats near broadcast rates become those.

    >>> as_rate(29.97), as_rate(12.5)
    (Fraction(30000, 1001), Fraction(25, 2))
    """
    if isinstance(fps, Fraction):
        return fps
    exact = Fraction(fps).limit_denominator(1000)
    for nominal in _NTSC:
        if abs(fps - nominal / 1.001) < 0.004:
            return Fraction(nominal * 1000, 1001)
    return exact


def checked_rate(fps: Fraction | float) -> Fraction:
    """Return a rate that a user gives as a fraction.

    Raises:
        UsageError: it is none.
    """
    if not (isinstance(fps, Fraction) or math.isfinite(fps)) or not _LOWEST <= fps <= _HIGHEST:
        raise UsageError(f"{fps} frames per second is no frame rate; give one between {_LOWEST} and {_HIGHEST}.")
    return as_rate(fps)


def parse_rate(text: str) -> Fraction:
    """Read "12", "29.97" or "30000/1001".

    Raises:
        UsageError: it is no rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or not int(match.group(2) or 1):
        raise UsageError(f"--fps {text[:40]!r} is no frame rate; write 12, 29.97 or 30000/1001.")
    number, divisor = match.groups()
    return checked_rate(float(number) if divisor is None else Fraction(Fraction(number), int(divisor)))


def is_variable(ticks: Sequence[int]) -> bool:
    """Whether the steps between frames differ by more than the rounding to a clock's ticks."""
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    return bool(steps) and max(steps) - min(steps) > _coarseness(steps)


def _coarseness(steps: Sequence[int]) -> int:
    """Return the ticks of the clock that times were rounded to before: milliseconds, in a file whose clock is finer."""
    common = math.gcd(*steps)
    return common if min(steps) >= _MIN_TICKS * common else 1


def typical_rate(
    ticks: Sequence[int], tick: Fraction, stated: Sequence[Fraction], last_duration: int = 0
) -> Fraction | None:
    """Return the rate at which most frames of a clip follow each other, frames per second.

    Gaps, dropped frames and a last frame that is held do not count. Clocks of milliseconds round frame times: the rate
    is the simplest one, of those stated and those in use, whose times round to the clip's.

    Args:
        ticks: the frames' times, strictly increasing.
        tick: seconds.
        stated: rates that the container and the codec state, the likeliest first.
        last_duration: ticks for which the last frame is shown; 0 where not known.

    Returns:
        The rate; None for fewer than two frames.
    """
    if len(ticks) < 2:
        return None
    coarse = _coarseness([b - a for a, b in itertools.pairwise(ticks)])
    if coarse > 1:
        ticks, tick, last_duration = [(t - ticks[0]) // coarse for t in ticks], tick * coarse, last_duration // coarse
    if not is_variable(ticks):
        return _even_rate(ticks, tick, stated)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    usual = statistics.median_low(steps)
    margin = max(Fraction(1), usual * _JITTER)
    alike = [step for step in steps if abs(step - usual) <= margin]
    if len(alike) < _TYPICAL_SHARE * len(steps):
        mean = len(ticks) / ((ticks[-1] - ticks[0] + (last_duration or Fraction(sum(steps), len(steps)))) * tick)
        return _near(mean, stated[:1]) or mean
    mean = 1 / (Fraction(sum(alike), len(alike)) * tick)
    # Where frames were dropped, all times lie on one grid; other gaps leave the longest stretch without any.
    on_grid = [rate for rate in (*stated, *_in_use(mean)) if rate > 0 and _fits(_grid(ticks, tick, rate), tick, rate)]
    if on_grid and abs(on_grid[0] / mean - 1) < _JITTER:
        return on_grid[0]
    run = _longest_run(ticks, usual)
    # Jitter leaves runs too short to tell a rate by.
    if len(run) > 2 and 10 * len(run) >= len(ticks):
        return _even_rate(run, tick, stated)
    return _near(mean, stated) or _near(mean, _in_use(mean)) or mean.limit_denominator(1001)


def _even_rate(ticks: Sequence[int], tick: Fraction, stated: Sequence[Fraction]) -> Fraction:
    """Return the rate of times whose steps are equal but for rounding."""
    places = _sample(ticks)
    span, count = ticks[-1] - ticks[0], len(ticks) - 1
    mean = count / (span * tick)
    fitting = [rate for rate in stated if rate > 0 and _fits(places, tick, rate)]
    is_exact = all((time - ticks[0]) * count == number * span for number, time in places)
    if is_exact and (mean in stated or count > _FEW):
        return mean
    known = [rate for rate in _in_use(mean) if _fits(places, tick, rate)]
    if known:
        # Few frames leave a choice: what is nearest to a rate that is stated, else a whole one.
        goal = fitting[0] if fitting else mean
        return min(known, key=lambda rate: (rate.denominator > 1 and not fitting, abs(rate - goal)))
    if fitting:
        return fitting[0]
    if span > 1:
        simple = _simplest(count / ((span + 1) * tick), count / ((span - 1) * tick))
        if _fits(places, tick, simple):
            return simple
    return next((rate for rate in stated[:1] if rate > 0 and abs(1 / rate - 1 / mean) <= tick), mean)


def _sample(ticks: Sequence[int]) -> list[tuple[int, int]]:
    """Return (number, time) of frames from the first to the last, not too many of them."""
    every = -(-len(ticks) // _MAX_SAMPLES)
    chosen = [*range(0, len(ticks) - 1, every), len(ticks) - 1]
    return [(number, ticks[number]) for number in chosen]


def _grid(ticks: Sequence[int], tick: Fraction, rate: Fraction) -> list[tuple[int, int]]:
    """Return (number, time) of frames, numbered by the steps of a rate that they lie away from the first."""
    step = 1 / (rate * tick)
    return [
        ((2 * (time - ticks[0]) * step.denominator + step.numerator) // (2 * step.numerator), time)
        for _, time in _sample(ticks)
    ]


def _fits(ticks: Sequence[tuple[int, int]], tick: Fraction, rate: Fraction) -> bool:
    """Whether even times of this rate, rounded to ticks, are the given ones."""
    step = 1 / (rate * tick)
    errors = [time * step.denominator - number * step.numerator for number, time in ticks]
    return max(errors) - min(errors) <= step.denominator


def _in_use(rate: Fraction) -> list[Fraction]:
    """Return the whole and broadcast rates near a rate; of whole ones that are no broadcast rates, the nearest two."""
    near = [Fraction(nominal) for nominal in (*_NTSC, 25, 50, 100) if abs(rate / nominal - 1) < _JITTER]
    slowed = [Fraction(nominal * 1000, 1001) for nominal in _NTSC if abs(rate / nominal - 1) < _JITTER]
    whole = [] if near else [Fraction(n) for n in (math.floor(rate), math.ceil(rate)) if n > 0]
    return near + slowed + whole


def _near(rate: Fraction, candidates: Iterable[Fraction]) -> Fraction | None:
    near = [other for other in candidates if other > 0 and abs(rate / other - 1) <= _SAME]
    return min(near, key=lambda other: abs(other - rate)) if near else None


def _longest_run(ticks: Sequence[int], usual: int) -> Sequence[int]:
    """Return the longest stretch of frames whose steps are the usual one but for rounding."""
    best, start = (0, 0), 0
    for index in range(1, len(ticks) + 1):
        if index == len(ticks) or abs(ticks[index] - ticks[index - 1] - usual) > 1:
            best = max(best, (start, index), key=lambda run: run[1] - run[0])
            start = index
    return ticks[best[0] : best[1]]


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of the smallest denominator within [low, high].

    >>> _simplest(Fraction(1198, 100), Fraction(1201, 100)), _simplest(Fraction(2983, 100), Fraction(2984, 100))
    (Fraction(12, 1), Fraction(179, 6))
    """
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    below = math.floor(low)
    return below + 1 / _simplest(1 / (high - below), 1 / (low - below))
