"""Taking apart the two fields of interlaced pictures: ffmpeg's bwdif filter, one picture out for one in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal

import av
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame

from latentvid.video.container import BrokenStream, reason

Shown = tuple[VideoFrame, Fraction, int]
"""A picture, its time in seconds, and its number."""
_SMALLEST = 3
"""Lines and columns that the filter needs."""


def deinterlaced(pictures: Iterable[Shown], which: Literal["interlaced", "all"]) -> Iterator[Shown]:
    """Yield the pictures without their combs, each at its time. Pictures are looked at together with their neighbours.

    Args:
        which: those that are marked as interlaced, or all of them.

    Raises:
        BrokenStream: the filter cannot take them.
    """
    filtered: _Filter | None = None
    for shown in pictures:
        kind = (shown[0].width, shown[0].height, shown[0].format.name)
        if filtered is None or filtered.kind != kind:
            if filtered is not None:
                yield from filtered(None)
            filtered = _Filter(shown[0], which)
        yield from filtered(shown)
    if filtered is not None:
        yield from filtered(None)


class _Filter:
    """One run of the filter, over pictures of one size and format."""

    def __init__(self, like: VideoFrame, which: str) -> None:
        self.kind = (like.width, like.height, like.format.name)
        self._waiting: deque[tuple[Fraction, int]] = deque()
        self._source: FilterContext | None = None
        if min(like.width, like.height) < _SMALLEST:
            return
        graph = Graph()
        self._source = graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=like.time_base or Fraction(1, 1000)
        )
        self._sink = graph.add("buffersink")
        graph.link_nodes(
            self._source, graph.add("bwdif", f"mode=send_frame:parity=auto:deint={which}"), self._sink
        ).configure()
        self._graph = graph  # it owns what the two contexts point to

    def __call__(self, shown: Shown | None) -> Iterator[Shown]:
        """Push a picture, or None at the end, and yield what is ready."""
        if self._source is None:
            if shown is not None:
                yield shown
            return
        try:
            if shown is not None:
                self._waiting.append(shown[1:])
            self._source.push(None if shown is None else shown[0])
            while self._waiting:
                picture = self._sink.pull()
                yield (picture, *self._waiting.popleft())  # type: ignore[misc]
        except (av.BlockingIOError, av.EOFError):
            return
        except av.FFmpegError as error:
            raise BrokenStream(f"it cannot be deinterlaced: {reason(error)}") from error
