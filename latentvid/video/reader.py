"""Reading videos as streams of upright RGB frames with exact times: `open_video` over PyAV (default) or decord."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from latentvid.core.errors import InputError, UsageError, did_you_mean
from latentvid.video.color import ToRgb
from latentvid.video.container import BrokenStream, check_size, decoded, open_container, reason, video_stream
from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta
from latentvid.video.scan import Scan, scan

_REORDERED = 17
"""Frames that a codec may store out of their order of showing: H.264 and HEVC allow 16."""

Backend = Literal["auto", "pyav", "decord"]
BACKENDS = ("auto", "pyav", "decord")


class VideoReader(Protocol):
    """A clip that can be read any number of times, from anywhere, a frame at a time."""

    @property
    def meta(self) -> VideoMeta: ...
    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]: ...
    def close(self) -> None: ...
    def __enter__(self) -> VideoReader: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_video(path: str | Path, *, backend: str = "auto", allow_truncated: bool = False) -> VideoReader:
    """Open a video, an animation or a still picture for reading.

    Args:
        path: a file. Stills and GIFs are clips too.
        backend: "pyav" (also what "auto" means), or "decord" for the files that it is known to read right.
        allow_truncated: a file that breaks off yields the frames before the break, and `meta.notes` says so; otherwise
            `frames()` raises there.

    Raises:
        InputError: the file is missing, empty, damaged from the start, or holds no video.
        UsageError: the backend is unknown or not installed.
    """
    path = Path(path)
    if backend not in BACKENDS:
        raise UsageError(f"video backend {backend!r} is not known{did_you_mean(backend, BACKENDS)}.")
    reader = PyAVReader(path, allow_truncated=allow_truncated)
    if backend == "decord":
        from latentvid.video.decord_reader import DecordReader

        return DecordReader(reader)
    return reader


class PyAVReader:
    """The reference reader. Holds no open file between calls, so it may be pickled and shared by processes."""

    def __init__(self, path: Path, *, allow_truncated: bool = False) -> None:
        self._path = path
        self._allow_truncated = allow_truncated
        self.scan: Scan = scan(path)
        self._meta = self.scan.meta

    @property
    def meta(self) -> VideoMeta:
        """What is known by now; a whole read turns a claimed frame count into a counted one."""
        return self._meta

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield frames start .. stop - 1 in display order; a range past the end is cut short silently.

        Raises:
            InputError: the file breaks off or is damaged inside the range (unless opened with `allow_truncated`).
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"frames {start}..{stop} is no range")
        if stop is not None and stop == start:
            return iter(())
        if start > 0 and self.scan.index.is_exact and not self._allow_truncated:
            return self._from_seek(start, stop)
        return self._from_beginning(start, stop)

    def close(self) -> None:
        """Nothing is held; here for the protocol."""

    def __enter__(self) -> PyAVReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frame_maker(self) -> FrameMaker:
        """Return what makes frames of decoded pictures; readers of stored pictures have another."""
        return FrameMaker(self._path, self.scan)

    def _from_beginning(self, start: int, stop: int | None) -> Iterator[Frame]:
        make = self._frame_maker()
        whole = self._num_whole()
        count = 0
        with open_container(self._path) as container:
            stream = video_stream(self._path, container, single_thread=self._allow_truncated)
            try:
                with closing(decoded(container, stream)) as pictures:
                    for picture in pictures:
                        if count == whole:
                            break
                        time_s = make.time_of(picture, count)
                        if count >= start:
                            yield make(picture, time_s, count)
                        count += 1
                        if stop is not None and count >= stop:
                            return
            except BrokenStream as error:
                self._broken(count, str(error))
                return
        self._ended(count, make)

    def _num_whole(self) -> int | None:
        """Return how many frames of a file cut short lie before its first gap, if there is one near the end.

        Frames are stored in another order than they are shown in: the cut may take one from between those it leaves.
        """
        times = list(self.scan.index.pts)
        if not self._meta.is_truncated or len(times) < 2 * _REORDERED:
            return None
        steps = [b - a for a, b in itertools.pairwise(times)]
        usual = sorted(steps)[len(steps) // 2]
        tail = range(len(steps) - _REORDERED, len(steps))
        return next((k + 1 for k in tail if steps[k] > 1.5 * usual), None)

    def _from_seek(self, start: int, stop: int | None) -> Iterator[Frame]:
        pts = self.scan.index.pts
        if start >= len(pts):
            if self._meta.is_truncated:
                self._broken(len(pts), "the file is cut short")
            return
        make = self._frame_maker()
        count = start
        with open_container(self._path) as container:
            stream = video_stream(self._path, container, single_thread=self._allow_truncated)
            try:
                container.seek(int(pts[start]), stream=stream, backward=True)
                with closing(decoded(container, stream)) as pictures:
                    for picture in pictures:
                        if count == start and (picture.pts is None or picture.pts < pts[start]):
                            continue
                        # A seek may land too late (streams without clean entry points): then read from the front.
                        if (
                            picture.pts is None
                            or bisect_left(pts, picture.pts) != count
                            or pts[min(count, len(pts) - 1)] != picture.pts
                        ):
                            break
                        yield make(picture, make.time_of(picture, count), count)
                        count += 1
                        if stop is not None and count >= stop:
                            return
            except (BrokenStream, av.FFmpegError):
                pass  # damage near an entry point may be an artefact of the seek; the plain read decides
        if count < len(pts):
            yield from self._from_beginning(count, stop)
        elif self._meta.is_truncated:
            self._broken(count, "the file is cut short")

    def _broken(self, count: int, why: str) -> None:
        if not count:
            raise InputError(f"{self._path}: damaged ({why}); not one frame can be decoded.")
        if not self._allow_truncated:
            known = self._meta.num_frames
            frames = f"its first {count} of {known}" if known > count else f"its first {count}"
            raise InputError(
                f"{self._path}: damaged ({why}); only {frames} frames can be decoded. "
                "Repair the file, or allow truncated input to use these."
            )
        self._note(count, f"damaged ({why}): only the first {count} frames could be decoded", is_truncated=True)

    def _ended(self, count: int, make: FrameMaker) -> None:
        if self._meta.is_truncated:
            self._broken(count, "the file is cut short")
            return
        if not count:
            raise InputError(f"{self._path}: the video stream holds no frames.")
        note = f"held {count} frames, not the {self._meta.num_frames} claimed" if count != self._meta.num_frames else ""
        self._note(count, note)
        for text in make.notes:
            self._note(count, text)

    def _note(self, count: int, text: str, *, is_truncated: bool = False) -> None:
        notes = self._meta.notes + ((text,) if text and text not in self._meta.notes else ())
        self._meta = replace(
            self._meta,
            num_frames=count,
            num_frames_source="counted",
            notes=notes,
            is_truncated=self._meta.is_truncated or is_truncated,
        )


class FrameMaker:
    """Turns decoded pictures into frames: times, size, colours, orientation."""

    def __init__(self, path: Path, found: Scan) -> None:
        self._path = path
        self._scan = found
        self._to_rgb = ToRgb(found.color)
        self._last: Fraction | None = None
        self._is_timed = isinstance(found.index.pts, list)
        self.notes: set[str] = set()

    def time_of(self, picture: VideoFrame, count: int) -> Fraction:
        """Return the picture's time; times that stand still or run backwards are moved on by a tick, and noted."""
        if self._is_timed and picture.pts is not None and picture.time_base:
            time_s = picture.pts * picture.time_base
        else:
            time_s = self._scan.meta.start_s + count / self._scan.meta.fps
        if self._last is not None and time_s <= self._last:
            self.notes.add("some frame times did not increase and were moved on")
            time_s = self._last + self._scan.meta.time_base
        self._last = time_s
        return time_s

    def __call__(self, picture: VideoFrame, time_s: Fraction, index: int) -> Frame:
        width, height = self._scan.stored_size
        if (picture.width, picture.height) != (width, height):
            check_size(self._path, picture.width, picture.height)
            self.notes.add(f"pictures change size within the clip; all are scaled to {width}x{height}")
        try:
            rgb = self._scan.orientation.apply(self._to_rgb(picture, width, height))
        except av.FFmpegError as error:
            raise InputError(f"{self._path}: frame {index} cannot be converted to RGB ({reason(error)}).") from error
        pixels = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        return Frame(pixels, time_s, index)
