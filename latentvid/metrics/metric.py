"""What every metric offers: fed chunk by chunk along a clip, with a result that no chunking can change.

Pixels enter as [t 3 h w] in [-1, 1] and are measured on the 8-bit scale [0, 255], one frame at a time: the same
arithmetic runs in the same order however the clip was cut, so the results agree to the last bit, and memory
does not grow with the chunk.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from latentvid.core.errors import UsageError


@runtime_checkable
class Metric(Protocol):
    """A number (or a few) about a video, or about a video against a reference."""

    is_over_set: ClassVar[bool]
    """The number exists for a set of clips only, not for one clip."""

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        """Take the next chunk of the current clip, [t 3 h w] in [-1, 1]; t may be any number, zero included."""

    def end_clip(self) -> None:
        """Close the current clip: nothing is differenced across clips. Harmless where no clip is open."""

    def compute(self) -> dict[str, float]:
        """Return the results over everything seen, the open clip included. Values that nothing defined are absent."""

    def reset(self) -> None:
        """Forget everything seen."""

    def protocol(self) -> dict[str, Any]:
        """Return what a reader needs to compare the numbers: scales, thresholds, hashes. JSON-able."""


def eight_bit(video: Tensor) -> Tensor:
    """Return [-1, 1] pixels on the 8-bit scale, float32 in [0, 255]: clamped as a file would be, not rounded."""
    if video.device.type == "mps":  # it has no float64, in which the metrics sum
        video = video.cpu()
    return ((video.detach().float() + 1) * 127.5).clamp(0, 255)


def check_video(video: Tensor) -> None:
    """Refuse anything but [t 3 h w] floats."""
    if video.ndim != 4 or video.shape[1] != 3 or not video.is_floating_point():
        raise UsageError(f"a metric takes float videos [t 3 h w] in [-1, 1], not {video.dtype} {list(video.shape)}.")


def check_pair(video: Tensor, reference: Tensor | None, metric: str) -> Tensor:
    """Return `reference` once it is known to be there and of the video's shape."""
    check_video(video)
    if reference is None:
        raise UsageError(f"{metric} compares two videos; pass the reference as well.")
    check_video(reference)
    if video.shape != reference.shape:
        raise UsageError(
            f"{metric}: the video is {list(video.shape)} and the reference {list(reference.shape)}; "
            "trim or resize them to one [t 3 h w]."
        )
    return reference.to(video.device)


def mean(values: list[float]) -> float:
    """Return the mean of a non-empty list, summed in float64 and in order."""
    return float(torch.tensor(values, dtype=torch.float64).mean())
