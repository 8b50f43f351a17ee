"""Writing videos: a bounded queue in front of a background encoder, and a file that is either whole or absent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from torch import Tensor

from latentvid.core.errors import LatentVidError, ResourceError, UsageError
from latentvid.core.files import atomic_path, check_output, resource_errors
from latentvid.video.encoders import Encoder, EncoderSettings, choose_codec, open_encoder
from latentvid.video.pixels import to_uint8
from latentvid.video.planes import Planes
from latentvid.video.rate import as_rate
from latentvid.video.sound import Sound

_QUEUE_FRAMES = 8
_TICK = Fraction(1, 90_000)
_Picture = np.ndarray | VideoFrame


class VideoWriter:
    """Encodes frames as they come, holding at most a few of them. Use as a context manager.

    H.264 in 4:2:0 with BT.709 limited-range values and tags, sRGB in; odd sizes keep their size as 4:4:4, which not
    every player shows. Codecs "h264-lossless" (RGB) and "ffv1" (`.mkv`, times rounded to milliseconds) return every
    bit; `.gif`, and `.png`/`.jpg`/`.webp` for one frame, follow from the suffix. Equal input gives equal bytes on one
    machine.

    When the block ends with an exception (an interrupt included), nothing is left and an older file stays as it was.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: Fraction | float,
        width: int,
        height: int,
        codec: str | None = None,
        crf: float = 18,
        preset: str = "medium",
        pix_fmt: str | None = None,
        time_base: Fraction | None = None,
        is_variable_rate: bool = False,
        color: Literal["bt709", "bt601"] = "bt709",
        parameter_set: int = 0,
        sample_aspect_ratio: Fraction = Fraction(1),
        sound: Sound | None = None,
        planes: Planes | None = None,
        overwrite: bool = False,
    ) -> None:
        """Check everything that can be checked before the first frame.

        Args:
            fps: frames per second; also how long the last frame is shown.
            width, height: pixels of every frame.
            codec: "h264", "h264-lossless", "ffv1", "gif" or "still"; by default what the suffix suggests.
            crf: H.264 quality, 0 (best) .. 51; 18 looks like the source.
            time_base: the clock's tick when times are given with the frames, best that of the source.
            is_variable_rate: frames come with times; without `time_base` the tick is 1/90000 s.
            color: the YUV matrix, tagged.
            parameter_set: H.264 only: number of the parameter sets, other than 0 in segments that are to be appended
                to a file that has its own (see `latentvid.video.append`).
            sample_aspect_ratio: width of a pixel over its height, tagged; GIFs and stills cannot say it.
            sound: copied along from another file; one without sound adds none.
            planes: store pictures as another clip does, turned back as they are there: H.264 or FFV1, whose pixel
                format, colours, pixel shape and display matrix are then the clip's. `width` and `height` are of upright
                pictures.

        Raises:
            UsageError: the file exists (without `overwrite`), or its suffix, codec or size do not go together.
        """
        self._path = Path(path)
        fps = as_rate(fps)
        if not 0 < fps <= 1000:
            raise UsageError(f"{path}: {float(fps):g} frames per second cannot be written.")
        if not (1 <= width <= 16384 and 1 <= height <= 16384):
            raise UsageError(f"{path}: frames of {width}x{height} cannot be written.")
        check_output(self._path, overwrite=overwrite)
        tick = time_base or (_TICK if is_variable_rate else None)
        codec = choose_codec(self._path, codec, is_film=planes is not None)
        if sound is not None and codec in ("gif", "still"):
            raise UsageError(f"{path}: {self._path.suffix} files hold no sound; name an .mp4 or .mkv file.")
        self._settings = EncoderSettings(
            width, height, fps, codec, crf, preset, pix_fmt, tick, color, 1 / fps, parameter_set,
            sample_aspect_ratio, sound, planes,
        )  # fmt: skip
        self._overwrite = overwrite
        self._queue: queue.Queue[tuple[_Picture, Fraction] | None] = queue.Queue(_QUEUE_FRAMES)
        self._error: BaseException | None = None
        self._abort = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: AbstractContextManager[Path] | None = None
        self._count = 0

    @property
    def num_frames(self) -> int:
        """Frames taken so far."""
        return self._count

    def __enter__(self) -> VideoWriter:
        self._file = atomic_path(self._path, overwrite=self._overwrite)
        target = self._file.__enter__()
        try:
            with self._clear_errors():
                encoder = open_encoder(target, self._settings)
            self._thread = threading.Thread(target=self._encode, args=(encoder,), name="video-writer", daemon=True)
            self._thread.start()
        except BaseException as error:
            self._file.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(self, video: Tensor, times_s: Sequence[Fraction | float] | None = None) -> None:
        """Append frames [t 3 h w], float in [-1, 1] or uint8. Blocks while the queue is full.

        Args:
            times_s: when each frame is shown, seconds, at least 0 and increasing; by default number / fps.
        """
        if self._thread is None:
            raise RuntimeError("VideoWriter must be entered (`with VideoWriter(...) as writer:`) before it can write")
        expected = (3, self._settings.height, self._settings.width)
        if video.ndim != 4 or tuple(video.shape[1:]) != expected:
            raise ValueError(f"{self._path}: frames must be [t {expected[0]} {expected[1]} {expected[2]}], "
                             f"not {list(video.shape)}")  # fmt: skip
        if times_s is not None and len(times_s) != len(video):
            raise ValueError(f"{len(times_s)} times for {len(video)} frames")
        if times_s is not None and self._settings.time_base is None and self._settings.codec not in ("gif", "still"):
            raise ValueError("pass is_variable_rate=True or time_base to VideoWriter to give times with frames")
        for i, frame in enumerate(video):  # one at a time, so that a long batch is not held twice
            rgb = np.array(to_uint8(frame).permute(1, 2, 0).cpu().numpy(), order="C", copy=True)
            time_s = Fraction(self._count) / self._settings.fps if times_s is None else Fraction(times_s[i])
            if time_s < 0:
                raise ValueError(f"frame times must not be negative ({float(time_s)} s)")
            self._put((rgb, time_s))
            self._count += 1

    def write_stored(self, picture: VideoFrame, time_s: Fraction) -> None:
        """Append a decoded picture bit for bit; `planes` says how it is stored. Blocks while the queue is full."""
        if self._thread is None or self._settings.planes is None:
            raise RuntimeError("VideoWriter must be entered, and know `planes`, before it can write stored pictures")
        picture.pict_type = PictureType.NONE  # the encoder chooses its own key frames
        self._put((picture, time_s))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if error is None:
                self._finish()
            else:
                self._stop()
        except BaseException as own:
            self._stop()
            self._file.__exit__(type(own), own, own.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)

    def _finish(self) -> None:
        if self._count == 0:
            raise UsageError(f"{self._path}: there are no frames to write.")
        self._put(None)
        assert self._thread is not None
        self._thread.join()
        self._raise_failure()

    def _stop(self) -> None:
        self._abort.set()
        if self._thread is not None:
            self._thread.join()

    def _put(self, item: tuple[_Picture, Fraction] | None) -> None:
        while True:
            self._raise_failure()
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _raise_failure(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            with self._clear_errors():
                raise error

    def _encode(self, encoder: Encoder) -> None:
        """The background thread: takes pictures until the end, an abort, or a failure."""
        try:
            while (item := self._next()) is not None:
                encoder.add(*item)
            if not self._abort.is_set():
                encoder.finish()
                return
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error
        try:
            encoder.abort()
        except (av.FFmpegError, OSError, ValueError) as error:
            self._error = self._error or error

    def _next(self) -> tuple[_Picture, Fraction] | None:
        while not self._abort.is_set():
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def _clear_errors(self) -> AbstractContextManager[None]:
        return _EncoderErrors(self._path)


class _EncoderErrors(AbstractContextManager[None]):
    """Turns what encoders and disks raise into sentences."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, (LatentVidError, ValueError)) and not isinstance(error, av.FFmpegError)):
            return
        if isinstance(error, MemoryError):
            raise ResourceError(f"{self._path}: not enough memory to encode.") from error
        if isinstance(error, OSError):
            with resource_errors(self._path):
                raise error
        if isinstance(error, av.FFmpegError):
            raise UsageError(f"{self._path}: cannot be encoded ({error}).") from error
