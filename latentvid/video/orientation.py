"""The display matrix of a video: how stored pictures are turned and mirrored to stand upright."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame


@dataclass(frozen=True, slots=True)
class Orientation:
    """Transpose first, then flip."""

    is_transposed: bool = False
    flips_x: bool = False
    flips_y: bool = False
    is_exact: bool = True
    """False for matrices that are no quarter turns or mirrors; those are not applied."""

    @property
    def rotation(self) -> int:
        """Degrees clockwise; of a mirrored picture, the turn that comes after mirroring it left to right."""
        if not self.is_transposed:
            return 180 if self.flips_y else 0
        return 90 if self.flips_x else 270

    @property
    def is_mirrored(self) -> bool:
        """Whether left and right are exchanged besides the turn."""
        return self.is_transposed ^ self.flips_x ^ self.flips_y

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after turning."""
        return (height, width) if self.is_transposed else (width, height)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Turn [h w 3]; a view where possible."""
        if self.is_transposed:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.flips_y else 1, :: -1 if self.flips_x else 1]


_QUARTER_TURNS = {
    0: Orientation(),
    90: Orientation(is_transposed=True, flips_x=True),
    180: Orientation(flips_x=True, flips_y=True),
    270: Orientation(is_transposed=True, flips_y=True),
}


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read a frame's display matrix [a b u; c d v; ..]: x' = a x + c y, y' = b x + d y, with y downwards."""
    try:
        side = frame.side_data[Type.DISPLAYMATRIX]  # type: ignore[typeddict-item]
    except KeyError:
        return Orientation()
    except ValueError:  # the binding meets a kind of side data it has no name for; it still knows the turn
        return _QUARTER_TURNS.get(-frame.rotation % 360, Orientation(is_exact=False))
    return from_matrix(np.frombuffer(bytes(side), dtype=np.int32))


def from_matrix(matrix: np.ndarray) -> Orientation:
    """Return the orientation of nine 16.16 (and 2.30) fixed-point numbers, int32 [9]."""
    if matrix.size < 9:
        return Orientation(is_exact=False)
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    scale = max(abs(a), abs(b), abs(c), abs(d))
    if scale == 0 or not math.isfinite(scale):
        return Orientation(is_exact=False)
    near = lambda value: abs(value) < 0.01 * scale  # noqa: E731
    if near(b) and near(c) and not near(a) and not near(d):
        return Orientation(False, a < 0, d < 0)
    if near(a) and near(d) and not near(b) and not near(c):
        return Orientation(True, c < 0, b < 0)
    return Orientation(is_exact=False)
