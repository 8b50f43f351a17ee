"""How a film is cut into windows: integers only, so that every plan can be checked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latentvid.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` .. `stop` - 1 of the film are denoised together; those from `new_from` on are new."""

    index: int
    start: int
    stop: int
    new_from: int
    keep_until: int
    """Frames at and after this one lie beyond the film's end and are dropped."""

    @property
    def num_new(self) -> int:
        return self.keep_until - self.new_from


@dataclass(frozen=True, slots=True)
class FilmPlan:
    """A film of `num_frames`, in windows of `window` frames that share `overlap` frames with the one before.

    With `append_overlap` (VidRD's mirrored joins) the shared frames are shown again, mirrored, as frames of
    their own, so that every window adds `window` frames.

    >>> [(w.start, w.stop, w.num_new) for w in FilmPlan(40, 16, 4)]
    [(0, 16, 16), (12, 28, 12), (24, 40, 12)]
    >>> [(w.start, w.stop, w.num_new) for w in FilmPlan(40, 16, 4, append_overlap=True)]
    [(0, 16, 16), (16, 32, 16), (32, 48, 8)]
    >>> [(w.start, w.stop, w.num_new) for w in FilmPlan(20, 16, 4, given=6)]
    [(2, 18, 12), (14, 30, 8)]
    """

    num_frames: int
    """Frames to make."""
    window: int
    overlap: int
    append_overlap: bool = False
    given: int = 0
    """Frames that exist before the film's first (a clip to be extended); at least `overlap` of them, or none."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise UsageError(f"num_frames={self.num_frames} must be at least 1.")
        if not 0 <= self.overlap < self.window:
            raise UsageError(
                f"overlap={self.overlap} must be smaller than the window of {self.window} frames, or no window is new."
            )
        if 0 < self.given < self.overlap:
            raise UsageError(f"the clip has {self.given} frames; continuing it takes {self.overlap}.")

    @property
    def num_shared(self) -> int:
        """Frames that a window re-makes of its predecessor's."""
        return 0 if self.append_overlap else self.overlap

    @property
    def stride(self) -> int:
        """New frames per window after the first."""
        return self.window - self.num_shared

    @property
    def num_windows(self) -> int:
        first = self.stride if self.given else self.window
        return 1 + max(0, -(-(self.num_frames - first) // self.stride))

    def __len__(self) -> int:
        return self.num_windows

    def __iter__(self) -> Iterator[Window]:
        return (self[k] for k in range(self.num_windows))

    def __getitem__(self, index: int) -> Window:
        """Return window `index`; frames are counted from the start of the given clip."""
        if not 0 <= index < self.num_windows:
            raise IndexError(index)
        origin = self.given - self.num_shared if self.given else 0
        start = origin + index * self.stride
        new_from = start if index == 0 and not self.given else start + self.num_shared
        end = self.given + self.num_frames
        return Window(index, start, start + self.window, new_from, min(end, start + self.window))
