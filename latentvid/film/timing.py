"""Which of the model's frames a continued clip shows when: the two have rates of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from latentvid.film.settings import ClipSettings, FilmSettings, Retime
from latentvid.video.rate import as_rate

SAME_RATE = 0.1
"""Rates that differ by no more than this share count as one."""


def model_rate(clip_fps: Fraction, model_fps: Fraction | float, retime: Retime) -> Fraction:
    """Return model frames per frame of the clip; 1 where the rates are near each other, or are not to be matched."""
    ratio = as_rate(model_fps) / clip_fps
    return Fraction(1) if retime == "none" or abs(1 / ratio - 1) <= SAME_RATE else ratio


@dataclass(frozen=True)
class Timing:
    """Where every new frame of a film lies among those of the model; both are numbered from 1.

    >>> half = Timing(Fraction(12, 24), blend=False)
    >>> [half.shown_at(k) for k in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    True
    >>> [str(Timing(Fraction(12, 24)).shown_at(k)) for k in range(1, 5)]
    ['1/2', '1', '3/2', '2']
    """

    rate: Fraction
    """Model frames per frame of the film."""
    blend: bool = True
    """Mix the two frames that a new one lies between; else take the nearest."""
    shown_before: int = 0
    """New frames that films of ours, of which this is one more, have shown since the clip."""
    made_before: int = 0
    """Frames that the model made for these."""

    @classmethod
    def between(
        cls,
        clip_fps: Fraction,
        model_fps: Fraction | float,
        retime: Retime,
        shown_before: int = 0,
        made_before: int = 0,
    ) -> Timing:
        return cls(model_rate(clip_fps, model_fps, retime), retime == "blend", shown_before, made_before)

    @classmethod
    def of(cls, settings: FilmSettings, clip: ClipSettings) -> Timing:
        rates = Fraction(clip.fps), Fraction(settings.model_fps)
        return cls.between(*rates, clip.retime, clip.shown_before, clip.made_before)

    def shown_at(self, number: int) -> Fraction:
        """Return the place of the film's new frame; 0 is the frame in front of the model's first.

        In films that go on from films of ours, the first may lie in front of that: between two frames made before.
        """
        place = (self.shown_before + number) * self.rate - self.made_before
        if self.blend:
            return max(place, Fraction(-1))
        return Fraction(max(-1 if self.made_before else 1, math.floor(place + Fraction(1, 2))))

    def needed(self, number: int) -> int:
        """Return how many frames the model must have made by the film's new frame."""
        return max(1, math.ceil(self.shown_at(number)))

    def within(self, start: int, stop: int) -> Iterator[int]:
        """Yield the film's new frames that can be shown once the model's frames start .. stop - 1 are made."""
        first = math.floor((start - 1 + self.made_before) / self.rate) - self.shown_before
        last = math.ceil((stop + 1 + self.made_before) / self.rate) - self.shown_before
        for number in range(1 if start == 1 else max(1, first), last + 1):
            if start <= self.needed(number) < stop:
                yield number
