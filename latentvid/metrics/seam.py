"""Seams: the step at a join between windows against the steps around it. Needs no weights and no source."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.metric import check_video, eight_bit, mean

STILL = 0.1
"""Steps below this (0-255 scale) count as this, so that a still scene does not turn rounding into a seam."""


@dataclass(frozen=True, slots=True)
class SeamStep:
    """One join. Steps are mean absolute frame differences on the 0-255 scale."""

    frame: int
    """Index of the first frame behind the join."""
    step: float
    neighbours: float
    """Median of the neighbouring steps, other joins left out."""

    @property
    def ratio(self) -> float:
        """1 where the join moves as its neighbours do; above, a jump; below, a freeze."""
        return max(self.step, STILL) / max(self.neighbours, STILL)


def frame_step(frame: Tensor, previous: Tensor) -> float:
    """Return the mean absolute difference of two frames [3 h w] that are on the 8-bit scale."""
    return float((frame - previous).abs().double().mean())


def seam_steps(steps: Sequence[float], joins: Iterable[int], *, num_neighbours: int = 8) -> list[SeamStep]:
    """Measure the joins of one clip.

    Args:
        steps: steps[i] is the step from frame i to frame i + 1.
        joins: indices of the first frame behind each join. Those outside the clip are left out.
        num_neighbours: how many steps on either side of a join to take the median of.
    """
    inside = sorted({join for join in joins if 1 <= join <= len(steps)})
    joined = {join - 1 for join in inside}
    measured = []
    for join in inside:
        at = join - 1
        around = range(max(0, at - num_neighbours), min(len(steps), at + num_neighbours + 1))
        neighbours = [steps[i] for i in around if i not in joined]
        if neighbours:
            measured.append(SeamStep(join, steps[at], statistics.median(neighbours)))
    return measured


def joins_of(num_frames: int, joins: Iterable[int], every: int | None) -> list[int]:
    """Return all joins of a clip: those named and those at multiples of `every`."""
    regular = range(every, num_frames, every) if every else ()
    return sorted({*joins, *regular})


class Seam:
    """`seam_ratio`, `seam_ratio_max`: step at the joins over the median neighbouring step; `seam_step`,
    `seam_neighbours`: the two parts, 0-255 scale. Means over all joins of all clips; a reference is ignored.

    Args:
        joins: indices of the first frame behind each join, in every clip.
        every: or the window stride: joins at its multiples.
        num_neighbours: steps on either side of a join that the median is taken of.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(self, *, joins: Sequence[int] = (), every: int | None = None, num_neighbours: int = 8) -> None:
        if (every is not None and every < 1) or num_neighbours < 1:
            raise UsageError(f"seam: every={every} and num_neighbours={num_neighbours} must be at least 1.")
        self.joins, self.every, self.num_neighbours = tuple(joins), every, num_neighbours
        self.reset()

    def reset(self) -> None:
        self._closed: list[SeamStep] = []
        self._steps: list[float] = []
        self._previous: Tensor | None = None

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        check_video(video)
        for frame in video:
            frame = eight_bit(frame)
            if self._previous is not None:
                self._steps.append(frame_step(frame, self._previous))
            self._previous = frame

    def end_clip(self) -> None:
        self._closed.extend(self._open())
        self._steps, self._previous = [], None

    def seams(self) -> list[SeamStep]:
        """Return every join seen so far, in order."""
        return [*self._closed, *self._open()]

    def compute(self) -> dict[str, float]:
        seams = self.seams()
        if not seams:
            return {}
        return {
            "seam_ratio": mean([seam.ratio for seam in seams]),
            "seam_ratio_max": max(seam.ratio for seam in seams),
            "seam_step": mean([seam.step for seam in seams]),
            "seam_neighbours": mean([seam.neighbours for seam in seams]),
        }

    def protocol(self) -> dict[str, Any]:
        return {
            "seam_ratio": "mean absolute frame difference at the join / median of its neighbours'",
            "joins": list(self.joins),
            "every": self.every,
            "num_neighbours": self.num_neighbours,
            "still_below": STILL,
        }

    def _open(self) -> list[SeamStep]:
        joins = joins_of(len(self._steps) + 1, self.joins, self.every)
        return seam_steps(self._steps, joins, num_neighbours=self.num_neighbours)
