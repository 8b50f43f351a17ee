"""What every reader of a clip offers, whatever file is behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta

Reader = TypeVar("Reader", bound="VideoReader")


class VideoReader(ABC):
    """A clip that can be read any number of times, from anywhere, a frame at a time. Usable in `with`."""

    @property
    @abstractmethod
    def meta(self) -> VideoMeta:
        """Return size, rate and length, the length as the file states it."""

    @abstractmethod
    def counted(self) -> VideoMeta:
        """Return `meta` with the true number of frames."""

    @abstractmethod
    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield frames start .. stop - 1 in display order."""

    def close(self) -> None:  # noqa: B027 (most readers open their file anew for every call of `frames`)
        """Release what is held open, if anything."""

    def __enter__(self: Reader) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
