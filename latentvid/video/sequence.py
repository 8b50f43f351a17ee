"""Reading numbered pictures as a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from latentvid.core.errors import UsageError
from latentvid.video.base import VideoReader
from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta
from latentvid.video.numbered import Numbered
from latentvid.video.pixels import resize


class SequenceReader(VideoReader):
    """Reads numbered pictures as a clip. Each is opened when its turn comes."""

    def __init__(self, path: Path, numbered: Numbered, fps: Fraction | None, open_one: Callable[[Path], Any]) -> None:
        """Look at the first picture.

        Args:
            fps: frames per second, which pictures do not state.
            open_one: opens a picture for reading.

        Raises:
            UsageError: there is no rate.
            InputError: the first picture cannot be read.
        """
        if fps is None:
            raise UsageError(
                f"{path}: {len(numbered.paths)} numbered pictures are a clip at a rate that they do not state; "
                "give it (--fps 25)."
            )
        self._pictures, self._fps, self._open = numbered.paths, fps, open_one
        first = open_one(numbered.paths[0]).meta
        notes = list(first.notes)
        if numbered.num_missing:
            notes.append(f"{numbered.num_missing} of its numbers are missing; the others follow each other")
        self._meta: VideoMeta = replace(
            first,
            path=str(path),
            container="image sequence",
            fps=fps,
            num_frames=len(numbered.paths),
            num_frames_source="counted",
            duration_s=float(len(numbered.paths) / fps),
            start_s=Fraction(0),
            time_base=1 / fps,
            assumed=tuple(name for name in first.assumed if name != "fps"),
            notes=tuple(notes),
        )

    @property
    def meta(self) -> VideoMeta:
        return self._meta

    def counted(self) -> VideoMeta:
        """Return `meta`; pictures are counted by their names."""
        return self._meta

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield frames start .. stop - 1 in the order of their numbers, all scaled to the size of the first.

        Raises:
            InputError: a picture is damaged, or gone.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"frames {start}..{stop} is no range")
        return self._frames(start, len(self._pictures) if stop is None else min(stop, len(self._pictures)))

    def _frames(self, start: int, stop: int) -> Iterator[Frame]:
        size = (self._meta.height, self._meta.width)
        for index in range(start, stop):
            pixels = next(iter(self._open(self._pictures[index]).frames(0, 1))).pixels
            if tuple(pixels.shape[1:]) != size:
                note = f"pictures differ in size; all are scaled to {size[1]}x{size[0]}"
                if note not in self._meta.notes:
                    self._meta = replace(self._meta, notes=(*self._meta.notes, note))
                pixels = resize(pixels[None], *size)[0]
            yield Frame(pixels, index / self._fps, index)
