"""One clock for all frames of a clip, made of the times of its packets: joined, evened out, or counted where they lie.

Containers state a time for every packet, but not always a true one: pieces that were joined byte by byte start their
clocks again, AVI and files copied from it have the order of decoding where that of showing should be, and cameras
write one time twice.
"""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_LONGEST_GAP_S = 10
"""A clock that leaves out more than this has been set, where the container allows for it (as in ffmpeg)."""
_USUAL_STEPS = 10
"""And more than so many usual steps: time lapses have long ones."""


class Stamp(NamedTuple):
    """What a packet says of its frame's time, in ticks."""

    pts: int
    dts: int | None
    is_key: bool
    number: int
    """Of the packet among all that hold something."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Frames in the order of showing."""

    ticks: Sequence[int]
    """Their times on one clock, strictly increasing."""
    stated: Sequence[int] | None
    """Their times as the packets and so the decoder state them; None where these are the same."""
    num_restarts: int = 0
    """Places where the clock starts anew or leaps."""
    breaks: tuple[int, ...] = ()
    """Numbers of the packets at which it starts anew: another recording follows."""
    num_equal: int = 0
    """Frames that were stated at the time of the one before."""


def timeline(stamps: Sequence[Stamp], tick: Fraction, *, has_own_order: bool, may_jump: bool) -> Timeline:
    """Return the times of the frames that the packets, in the order of decoding, hold.

    Args:
        has_own_order: the container states decoding times, so that these tell of restarts too.
        may_jump: the container's clock may be set forward in the middle (transport and program streams).
    """
    cut = _pieces(stamps, tick, has_own_order=has_own_order, may_jump=may_jump)
    is_new = [False] + [after[0].pts < max(s.pts for s in before) for before, after in itertools.pairwise(cut)]
    kept = [_from_key(piece) if new else piece for piece, new in zip(cut, is_new, strict=True)]
    pieces = [sorted(stamp.pts for stamp in piece) for piece in kept]
    step = _usual_step(pieces)
    num_equal = sum(a == b for piece in pieces for a, b in itertools.pairwise(piece))
    if len(pieces) == 1 and not num_equal:
        return Timeline(pieces[0], None)
    ticks: list[int] = []
    for piece in pieces:
        shift = ticks[-1] + step - piece[0] if ticks else 0
        ticks += [time + shift for time in _spread(piece, step)]
    # What lies in between, without a time, is the rest of a packet that was cut in two.
    breaks = tuple(
        before[-1].number + 1 for (before, _), new in zip(itertools.pairwise(cut), is_new[1:], strict=True) if new
    )
    return Timeline(ticks, list(itertools.chain.from_iterable(pieces)), len(cut) - 1, breaks, num_equal)


def _pieces(stamps: Sequence[Stamp], tick: Fraction, *, has_own_order: bool, may_jump: bool) -> list[list[Stamp]]:
    """Cut where the clock starts again.

    A key frame is shown after all that is decoded before it. Where every frame is a key frame, a step back of little
    more than a frame is a camera's jitter.
    """
    is_intra = all(stamp.is_key for stamp in stamps)
    usual = _usual_step([sorted(stamp.pts for stamp in stamps)])
    longest = max(_LONGEST_GAP_S / tick, Fraction(_USUAL_STEPS * usual))
    pieces: list[list[Stamp]] = [[]]
    latest, decoded = 0, None
    for stamp in stamps:
        pts, dts, is_key, _ = stamp
        if pieces[-1]:
            back = latest - pts
            is_restart = is_key and back > (2 * usual if is_intra else 0)
            if has_own_order and dts is not None and decoded is not None:
                is_restart |= dts < decoded and back >= 0 and not is_intra
                is_restart |= may_jump and dts - decoded > longest
            if is_restart:
                pieces.append([])
        latest = max(latest, pts) if pieces[-1] else pts
        decoded = dts
        pieces[-1].append(stamp)
    return pieces


def _from_key(piece: list[Stamp]) -> list[Stamp]:
    """Leave out what cannot be decoded, or not rightly, where a piece does not begin with a key frame."""
    first = next((stamp for stamp in piece if stamp.is_key), piece[0])
    return [stamp for stamp in piece if stamp.pts >= first.pts]


def _usual_step(pieces: Sequence[Sequence[int]]) -> int:
    """Return the median step between frames shown one after the other, at least a tick; times are sorted."""
    steps: list[int] = []
    for piece in pieces:
        runs = [(time, sum(1 for _ in equal)) for time, equal in itertools.groupby(piece)]
        for (time, count), (after, _) in itertools.pairwise(runs):
            steps += [max(1, (after - time) // count)] * count
    return statistics.median_low(steps) if steps else 1


def _spread(times: Sequence[int], step: int) -> list[int]:
    """Lay frames stated at one time evenly between it and the next; times are sorted."""
    spread: list[int] = []
    runs = [(time, sum(1 for _ in equal)) for time, equal in itertools.groupby(times)]
    for (time, count), (after, _) in itertools.pairwise([*runs, (runs[-1][0] + runs[-1][1] * step, 1)]):
        for k in range(count):
            place = time + k * (after - time) // count
            spread.append(max(place, spread[-1] + 1) if spread else place)
    return spread


def filled(times: Sequence[int | None]) -> list[int]:
    """Return increasing times, those that are missing laid out evenly, or at the usual step at the ends."""
    known = [(place, time) for place, time in enumerate(times) if time is not None]
    if not known:
        return list(range(len(times)))
    steps = [max(1, (t - s) // (k - j)) for (j, s), (k, t) in itertools.pairwise(known)]
    usual = statistics.median_low(steps) if steps else 1
    alike = [step for step in steps if abs(step - usual) <= 1] or [usual]
    step = Fraction(sum(alike), len(alike))
    (first, start), (last, end) = known[0], known[-1]
    whole = [start - round((first - place) * step) for place in range(first)]
    for (place, time), (after, then) in itertools.pairwise(known):
        whole += [time + k * (then - time) // (after - place) for k in range(after - place)]
    whole += [end + round((place - last) * step) for place in range(last, len(times))]
    return list(itertools.accumulate(whole, lambda before, time: max(before + 1, time)))


def runs_backwards(shown: Sequence[int | None]) -> bool:
    """Whether times in the order of showing do not increase: then they are none of showing."""
    known = [pts for pts in shown if pts is not None]
    return any(b < a for a, b in itertools.pairwise(known))


class Finder:
    """Finds decoded frames, as they come, among those of a timeline."""

    def __init__(self, stated: Sequence[int]) -> None:
        self._stated = stated
        self._next = 0
        self._starts = [0] + [k for k in range(1, len(stated)) if stated[k] < stated[k - 1]] + [len(stated)]

    def __call__(self, pts: int | None) -> int | None:
        """Return the number of the next frame stated at `pts`; None where there is none."""
        if pts is None:
            return None
        # Frames that cannot be decoded are passed over; a whole piece is, if the time is only found behind it.
        for start, stop in itertools.pairwise(self._starts):
            if stop <= self._next:
                continue
            place = bisect_left(self._stated, pts, max(start, self._next), stop)
            if place < stop and self._stated[place] == pts:
                self._next = place + 1
                return place
        return None
