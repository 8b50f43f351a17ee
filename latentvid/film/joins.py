"""Where the windows of a film meet, and how large the step from one to the next is."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from latentvid.core.errors import LatentVidError
from latentvid.film.folder import RunFolder, run_path
from latentvid.metrics.metric import eight_bit
from latentvid.metrics.seam import STILL, frame_step
from latentvid.video.pixels import to_float
from latentvid.video.reader import open_video

NEIGHBOURS = 8
"""Steps on either side of a join that it is compared with."""


@dataclass(frozen=True)
class Join:
    """The step from a clip's last frame to the first new one: mean absolute differences, 0-255 scale."""

    join_step: float
    join_before: float
    """Median of the clip's own last steps; 0 for a single frame."""
    join_after: float
    """Median of the first steps behind the join; 0 where there are none."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def in_words(self) -> str:
        usual = max(self.join_before or self.join_after, STILL)
        return (
            f"the step at the join is {self.join_step:.2f} levels, {self.join_step / usual:.2f} times that between the "
            f"clip's last frames ({self.join_before:.2f}); behind it steps are {self.join_after:.2f}."
        )


def join_of(film: Path, at: int) -> Join:
    """Measure the step into frame `at` of a video, and those around it."""
    first = max(0, at - NEIGHBOURS - 1)
    with open_video(film) as reader:
        frames = [eight_bit(to_float(frame.pixels)) for frame in reader.frames(first, at + NEIGHBOURS + 1)]
    steps = [frame_step(after, before) for before, after in pairwise(frames)]
    here = at - first - 1
    median = lambda some: statistics.median(some) if some else 0.0  # noqa: E731
    return Join(steps[here], median(steps[:here]), median(steps[here + 1 :]))


def joins_of_film(clip: str | Path) -> list[int]:
    """Return the first frame of every window but the film's first; none for a video that is no film of ours."""
    clip = Path(clip)
    try:
        run = RunFolder.open(run_path(clip))
        if run.film.resolve() != clip.resolve() or run.record.film is None:
            return []
        at = _own_frames(run)
        joins = [at] if at else []
        for index in range(run.record.num_windows - 1):
            at += run.window(index).num_shown
            joins.append(at)
        return joins
    except LatentVidError:
        return []


def _own_frames(run: RunFolder) -> int:
    """Return the frames of the clip that the film continues: those of the film that no window made."""
    if run.settings.clip is None:
        return 0
    with open_video(run.film) as reader:
        return reader.counted().num_frames - run.num_shown()
