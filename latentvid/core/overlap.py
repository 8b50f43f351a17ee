"""The frames that two windows share: how many there may be, and in which order the second window has them."""

from __future__ import annotations

from typing import Literal, get_args

from latentvid.core.errors import UsageError, did_you_mean

Order = Literal["mirror", "chronological"]
"""Of the shared frames in the second window: reversed, as VidRD joins windows, or as they were."""
ORDERS: tuple[str, ...] = get_args(Order)


def check_overlap(overlap: int, order: str, *, num_frames: int) -> None:
    """Refuse an unknown order, and an overlap that a window of `num_frames` frames cannot have.

    Raises:
        UsageError: as above.
    """
    if order not in ORDERS:
        raise UsageError(f"order={order!r} is not known{did_you_mean(order, ORDERS)}.")
    if not 0 <= overlap <= num_frames:
        raise UsageError(f"overlap={overlap} must lie between 0 and the window's {num_frames} frames.")
