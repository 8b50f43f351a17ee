"""What a clip is found to hold, where its file only claims it: frames counted, the rate from their times."""

from __future__ import annotations

import statistics
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from latentvid.video.meta import VideoMeta
from latentvid.video.planes import stored_frames
from latentvid.video.reader import open_video

MAX_FPS = 1000
"""The highest rate that is written."""


def counted(clip: str | Path) -> VideoMeta:
    """Return the facts about a clip with its frames counted, by decoding it if its packets do not tell them surely.

    Where it holds other frames than it claims, its rate is that of their usual step.

    Raises:
        InputError: it cannot be read to its end.
    """
    with open_video(clip) as reader:
        meta = reader.meta
    if meta.num_frames_source == "counted":
        return meta
    times = [frame.time_s for frame in stored_frames(clip)]
    fps = meta.fps
    if len(times) != meta.num_frames and len(times) > 1:
        fps = 1 / _usual_step(times)
        fps = fps if fps <= MAX_FPS else meta.fps  # a clock that was set back makes steps of a tick
    return replace(meta, num_frames=len(times), num_frames_source="counted", fps=fps, start_s=times[0])


def _usual_step(times: list[Fraction]) -> Fraction:
    steps = [b - a for a, b in pairwise(times)]
    usual, mean = statistics.median_low(steps), (times[-1] - times[0]) / len(steps)
    # A clock of milliseconds rounds single steps; their mean is nearer where they are all alike.
    return mean if max(steps) - min(steps) <= Fraction(2, 1000) else usual
