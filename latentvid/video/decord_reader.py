"""Reading through decord, for the files that it is known to read right; everything else is refused with a reason.

decord repeats or loses frames without an error on edit lists, transport streams and some VP9, does not know AV1, and
reads untagged HD as BT.601. It is therefore held against the reference reader when a file is opened: frame count,
frame times, and the pixels of the first frame must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.core.errors import InputError, UsageError
from latentvid.video.base import VideoReader
from latentvid.video.frame import Frame
from latentvid.video.meta import VideoMeta

if TYPE_CHECKING:
    from latentvid.video.reader import PyAVReader

_CODECS = {"h264", "mpeg4", "mjpeg"}
_CONTAINERS = ("mov", "matroska", "avi")
_BATCH_BYTES = 64 << 20
# The two scale chroma differently, which shows at edges and averages out over a block; a wrong range or turn does not.
_BLOCK = 8
_MAX_MEAN_DIFFERENCE = 3.0


class DecordReader(VideoReader):
    """The `VideoReader` over decord. To be opened in the process that reads: it survives neither fork nor pickle."""

    def __init__(self, reference: PyAVReader) -> None:
        decord = _decord()
        self._reference = reference
        self._path = reference.meta.path
        self._refuse_unsafe()
        try:
            self._reader: Any = decord.VideoReader(self._path, ctx=decord.cpu(0))
        except (decord.DECORDError, RuntimeError, OSError) as error:
            raise self._refusal("it cannot open the file") from error
        self._compare(decord)

    @property
    def meta(self) -> VideoMeta:
        """The reference reader's facts, which decord was found to agree with."""
        return self._reference.meta

    def counted(self) -> VideoMeta:
        """Return `meta`; files whose frames are not counted are refused."""
        return self._reference.counted()

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield frames start .. stop - 1 in display order, decoding in batches of bounded size.

        Raises:
            InputError: decord fails inside the range.
        """
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"frames {start}..{stop} is no range")
        return self._frames(start, self.meta.num_frames if stop is None else min(stop, self.meta.num_frames))

    def close(self) -> None:
        """Drop decord's buffers."""
        self._reader = None

    def _frames(self, start: int, stop: int) -> Iterator[Frame]:
        batch = max(1, _BATCH_BYTES // (3 * self.meta.width * self.meta.height))
        for first in range(start, stop, batch):
            indices = list(range(first, min(first + batch, stop)))
            pictures = self._get(indices)
            for index, picture in zip(indices, pictures, strict=True):
                pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
                yield Frame(pixels, self._time(index), index)

    def _get(self, indices: list[int]) -> np.ndarray:
        decord = _decord()
        try:
            pictures: np.ndarray = self._reader.get_batch(indices).asnumpy()
            self._reader.seek(0)  # else decord goes on decoding the rest of the file into memory
        except (decord.DECORDError, RuntimeError) as error:
            raise InputError(f"{self._path}: decord failed at frame {indices[0]}; use the pyav backend.") from error
        return pictures

    def _time(self, index: int) -> Fraction:
        return int(self._reference.scan.index.pts[index]) * self.meta.time_base

    def _refuse_unsafe(self) -> None:
        meta, index = self.meta, self._reference.scan.index
        if meta.codec not in _CODECS:
            raise self._refusal(f"it does not read {meta.codec} reliably")
        if not meta.container.startswith(_CONTAINERS):
            raise self._refusal(f"it does not read {meta.container} files reliably")
        if self._reference.is_deinterlaced:
            raise self._refusal("it does not deinterlace")
        if index.num_hidden:
            raise self._refusal("it ignores the file's edit list")
        if meta.color_matrix == "bt709" and "color_matrix" in meta.assumed:
            raise self._refusal("it takes untagged HD for BT.601")
        if not index.is_exact or meta.is_truncated:
            raise self._refusal("the file's own frame count cannot be relied on")

    def _compare(self, decord: Any) -> None:
        count = len(self._reader)
        if count != self.meta.num_frames:
            raise self._refusal(f"it counts {count} frames where there are {self.meta.num_frames}")
        try:
            last = float(self._reader.get_frame_timestamp(count - 1)[0])
            first = float(self._reader.get_frame_timestamp(0)[0])
        except (decord.DECORDError, RuntimeError) as error:
            raise self._refusal("it cannot tell the frame times") from error
        span = float(self._time(count - 1) - self._time(0))
        if abs((last - first) - span) > 0.002:
            raise self._refusal("it tells other frame times")
        ours = next(self._reference.frames(0, 1)).pixels
        theirs = torch.from_numpy(self._get([0])[0]).permute(2, 0, 1)
        if ours.shape != theirs.shape or _difference(ours, theirs) > _MAX_MEAN_DIFFERENCE:
            raise self._refusal("it decodes other colours, sizes or turns")

    def _refusal(self, why: str) -> InputError:
        return InputError(f"{self._path}: the decord backend cannot be used for this file ({why}); use pyav.")


def _difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of block averages of [3 h w]."""
    pooled = F.avg_pool2d(a.float() - b.float(), _BLOCK, ceil_mode=True)
    return float(pooled.abs().mean())


def _decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise UsageError(
            "the decord backend is not installed (pip install decord; Linux and Windows on x86-64); use pyav."
        ) from error
    return decord
