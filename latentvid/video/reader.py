"""Reading videos as streams of upright RGB frames with exact times: `open_video` over PyAV (default) or decord."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame

from latentvid.core.errors import InputError, UsageError, did_you_mean
from latentvid.video.base import VideoReader
from latentvid.video.clock import Finder
from latentvid.video.color import ToRgb
from latentvid.video.container import BrokenStream, check_size, decoded, open_container, reason, video_stream
from latentvid.video.deinterlace import Shown, deinterlaced
from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta
from latentvid.video.numbered import numbered_pictures
from latentvid.video.picture import PictureReader, needs_pillow
from latentvid.video.rate import checked_rate
from latentvid.video.scan import DEINTERLACED, FEW_PACKETS, INTERLACED, PROGRESSIVE, Scan, scan
from latentvid.video.sequence import SequenceReader

_REORDERED = 17
"""Frames that a codec may store out of their order of showing: H.264 and HEVC allow 16."""

Backend = Literal["auto", "pyav", "decord"]
BACKENDS = ("auto", "pyav", "decord")


def open_video(
    path: str | Path,
    *,
    backend: str = "auto",
    allow_truncated: bool = False,
    fps: Fraction | float | None = None,
    deinterlace: bool = False,
) -> VideoReader:
    """Open a video, an animation or a still picture for reading.

    Args:
        path: a file. Stills and GIFs are clips too.
        backend: "pyav" (also what "auto" means), or "decord" for the files that it is known to read right.
        allow_truncated: a file that breaks off yields the frames before the break, and `meta.notes` says so; otherwise
            `frames()` raises there.
        fps: frames per second of what states none: numbered pictures (then `path` may be their folder, or a pattern
            such as "frame_%04d.png"), bare streams, stills. Files that state a rate keep it.
        deinterlace: take apart the fields of interlaced pictures, by ffmpeg's bwdif; others are left as they are.

    Raises:
        InputError: the file is missing, empty, damaged from the start, or holds no video.
        UsageError: the backend is unknown or not installed.
    """
    path = Path(path)
    if backend not in BACKENDS:
        raise UsageError(f"video backend {backend!r} is not known{did_you_mean(backend, BACKENDS)}.")
    rate = None if fps is None else checked_rate(fps)
    if (numbered := numbered_pictures(path)) is not None:
        return SequenceReader(path, numbered, rate, open_video)
    if backend != "decord" and needs_pillow(path):
        return PictureReader(path, fps=rate)
    reader = PyAVReader(path, allow_truncated=allow_truncated, fps=rate, deinterlace=deinterlace)
    if backend == "decord":
        from latentvid.video.decord_reader import DecordReader

        return DecordReader(reader)
    return reader


@dataclass(frozen=True, slots=True)
class Reading:
    """How the clips of a call are opened, beyond what their files say; see `open_video`."""

    fps: Fraction | None = None
    deinterlace: bool = False

    def open(self, path: str | Path, *, allow_truncated: bool = False) -> VideoReader:
        return open_video(path, allow_truncated=allow_truncated, fps=self.fps, deinterlace=self.deinterlace)


AS_STATED = Reading()


class PyAVReader(VideoReader):
    """The reference reader. Holds no open file between calls, so it may be pickled and shared by processes."""

    def __init__(
        self,
        path: Path,
        *,
        allow_truncated: bool = False,
        fps: Fraction | None = None,
        deinterlace: bool = False,
    ) -> None:
        self._path = path
        self._allow_truncated = allow_truncated
        self.scan: Scan = scan(path, given_fps=fps)
        self.is_deinterlaced = deinterlace and self.scan.interlaced is not None
        """Whether the frames that are read are not the stored pictures."""
        self._is_single_threaded = allow_truncated or len(self.scan.index.pts) <= FEW_PACKETS
        self._meta = self.scan.meta
        if fps is not None and self._meta.fps != fps:
            note = f"it states its rate, {float(self._meta.fps):g} frames per second, which is kept"
            self._meta = replace(self._meta, notes=(*self._meta.notes, note))
        if self.is_deinterlaced:
            notes = tuple(DEINTERLACED if note == INTERLACED else note for note in self._meta.notes)
            self._meta = replace(self._meta, notes=notes)
        elif deinterlace:
            self._meta = replace(self._meta, notes=(*self._meta.notes, PROGRESSIVE))

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
        return self._frames(start, stop)

    def counted(self) -> VideoMeta:
        """Return `meta` with the frames counted: a file that only claims their number is decoded once.

        Raises:
            InputError: it breaks off or is damaged (unless opened with `allow_truncated`).
        """
        if self._meta.num_frames_source == "claimed":
            for _ in self.stored():
                pass
        return self._meta

    def stored(self, start: int = 0, stop: int | None = None) -> Iterator[Shown]:
        """Yield pictures start .. stop - 1, with their times, as they are stored: neither converted nor deinterlaced.

        Raises:
            InputError: as `frames`.
        """
        return self._stored(_FrameMaker(self._path, self.scan), start, stop)

    def _frames(self, start: int, stop: int | None) -> Iterator[Frame]:
        make = _FrameMaker(self._path, self.scan)
        which = self.scan.interlaced
        if not self.is_deinterlaced or which is None:
            for picture, time_s, number in self._stored(make, start, stop):
                yield make(picture, time_s, number)
            return
        # The filter looks at a picture's neighbours, whatever part of the clip is read.
        pictures = self._stored(make, max(0, start - 1), None if stop is None else stop + 1)
        try:
            for picture, time_s, number in deinterlaced(pictures, which):
                if number >= start and (stop is None or number < stop):
                    yield make(picture, time_s, number)
        except BrokenStream as error:
            raise InputError(f"{self._path}: {error}.") from error

    def _stored(self, make: _FrameMaker, start: int, stop: int | None) -> Iterator[Shown]:
        """Yield the stored pictures start .. stop - 1, each with its time and number."""
        if start > 0 and self.scan.index.is_exact and not self._allow_truncated:
            return self._from_seek(make, start, stop)
        return self._from_beginning(make, start, stop)

    def _from_beginning(self, make: _FrameMaker, start: int, stop: int | None) -> Iterator[Shown]:
        whole = self._num_whole()
        count = 0
        with open_container(self._path) as container:
            stream = video_stream(self._path, container, single_thread=self._is_single_threaded)
            try:
                with closing(decoded(container, stream, self.scan.index.pieces)) as pictures:
                    for picture in pictures:
                        if count == whole:
                            break
                        time_s = make.time_of(picture, count)
                        if count >= start:
                            yield picture, time_s, count
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

    def _from_seek(self, make: _FrameMaker, start: int, stop: int | None) -> Iterator[Shown]:
        pts = self.scan.index.pts
        if start >= len(pts):
            if self._meta.is_truncated:
                self._broken(len(pts), "the file is cut short")
            return
        count = start
        with open_container(self._path) as container:
            stream = video_stream(self._path, container, single_thread=self._is_single_threaded)
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
                        yield picture, make.time_of(picture, count), count
                        count += 1
                        if stop is not None and count >= stop:
                            return
            except (BrokenStream, av.FFmpegError):
                pass  # damage near an entry point may be an artefact of the seek; the plain read decides
        if count < len(pts):
            yield from self._from_beginning(_FrameMaker(self._path, self.scan), count, stop)
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

    def _ended(self, count: int, make: _FrameMaker) -> None:
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


class _FrameMaker:
    """Turns decoded pictures into frames: times, size, colours, orientation."""

    def __init__(self, path: Path, found: Scan) -> None:
        self._path = path
        self._scan = found
        self._to_rgb = ToRgb(found.color)
        self._last: Fraction | None = None
        index = found.index
        self._find = Finder(index.pts if index.stated is None else index.stated)
        self.notes: set[str] = set()

    def time_of(self, picture: VideoFrame, count: int) -> Fraction:
        """Return the picture's time; times that stand still or run backwards are moved on by a tick, and noted."""
        time_s = self._stated_time(picture, count)
        if time_s is None:
            time_s = self._guess()
        if self._last is not None and time_s <= self._last:
            self.notes.add("some frame times did not increase and were moved on")
            time_s = self._last + self._scan.meta.time_base
        self._last = time_s
        return time_s

    def _stated_time(self, picture: VideoFrame, count: int) -> Fraction | None:
        """Return the time that the file states of a picture, on the clip's one clock; None where it does not."""
        index, meta = self._scan.index, self._scan.meta
        if isinstance(index.pts, range):
            return meta.start_s + count / meta.fps
        if index.is_by_number:
            return index.pts[count] * meta.time_base if count < len(index.pts) else None
        if picture.pts is None and count < index.num_led:
            return index.pts[count] * meta.time_base
        if index.stated is None:
            return None if picture.pts is None or not picture.time_base else picture.pts * picture.time_base
        number = self._find(picture.pts)
        return None if number is None else index.pts[number] * meta.time_base

    def _guess(self) -> Fraction:
        """Return a time for a picture that has none: a step on, before the next that is known."""
        index, meta = self._scan.index, self._scan.meta
        if self._last is None:
            return meta.start_s
        after = bisect_right(index.pts, self._last / meta.time_base)
        step = round(1 / (meta.fps * meta.time_base)) * meta.time_base or meta.time_base
        if after < len(index.pts) and index.pts[after] * meta.time_base <= self._last + step:
            return (self._last + index.pts[after] * meta.time_base) / 2
        return self._last + step

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
