"""What is known about a video file before its frames are read, and how sure that knowledge is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class VideoMeta:
    """Facts about one video stream. Sizes are pixels as shown, that is after rotation."""

    path: str
    container: str
    codec: str
    width: int
    height: int
    fps: Fraction
    """The rate at which most frames follow each other, whatever gaps there are; see `is_variable_rate`."""
    num_frames: int
    num_frames_source: Literal["counted", "claimed"]
    """"counted": every shown frame was seen; "claimed": what the container or its packets say."""
    duration_s: float
    start_s: Fraction
    """Time of the first shown frame."""
    time_base: Fraction
    """The tick of the file's clock; frame times are multiples of it."""
    is_variable_rate: bool
    rotation: int
    """Degrees clockwise that the reader turns the stored pictures by: 0, 90, 180 or 270."""
    pix_fmt: str
    bit_depth: int
    color_range: Literal["limited", "full"]
    color_matrix: str
    """bt601, bt709, bt2020, smpte240m, fcc, or rgb: the one that the conversion to RGB uses."""
    color_transfer: str | None
    color_primaries: str | None
    sample_aspect_ratio: Fraction
    """Width of a stored pixel over its height, after rotation. Recorded, never applied."""
    has_audio: bool
    is_truncated: bool = False
    """The file ends before its own bookkeeping says it should, or holds frames that cannot be decoded."""
    assumed: tuple[str, ...] = ()
    """Names of the fields above that the file does not state and that were filled by rule."""
    notes: tuple[str, ...] = ()
    """Sentences about what the reader does to this file that a user may want to know."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: fractions as "30000/1001", tuples as lists."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return list(value) if isinstance(value, tuple) else value
