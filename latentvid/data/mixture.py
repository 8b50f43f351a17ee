"""Batches of videos and of images by turns: which kind and which items a step takes, as a function of the seed.

Training on both keeps what images teach (PYoCo, arXiv 2305.10474; VidRD, arXiv 2309.03549). A batch is of one kind,
since clips and stills do not stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from latentvid.core.rng import Rng

Item_co = TypeVar("Item_co", covariant=True)
Item = TypeVar("Item")


class Source(Protocol[Item_co]):
    """Numbered items, each a function of its number."""

    def item(self, index: int) -> Item_co: ...


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """What a step trains on."""

    kind: Literal["video", "image"]
    items: tuple[Item, ...]


class Mixture(Generic[Item]):
    """Steps numbered from 0, each all videos or all images."""

    def __init__(
        self,
        video_source: Source[Item] | None,
        image_source: Source[Item] | None,
        video_share: float = 0.7,
        seed: int = 0,
    ) -> None:
        """Mix two sources; where one is None the other is taken always.

        Args:
            video_share: share of the steps that take videos; exact over any run of steps to within one step.
        """
        if video_source is None and image_source is None:
            raise ValueError("a mixture needs a source")
        if not 0 <= video_share <= 1:
            raise ValueError(f"video_share={video_share} is no share")
        self.sources = {"video": video_source, "image": image_source}
        self.video_share = 1.0 if image_source is None else 0.0 if video_source is None else video_share
        rng = Rng(seed).child("mixture")
        self._offset = float(rng.child("offset").uniform(1))
        self._rng = rng

    def kind(self, step: int) -> Literal["video", "image"]:
        """Return what step number `step` takes."""
        before = int(step * self.video_share + self._offset)
        return "video" if int((step + 1) * self.video_share + self._offset) > before else "image"

    def item(self, step: int, batch: int) -> Batch[Item]:
        """Return the batch of `batch` items for step number `step`; no item is taken twice."""
        kind = self.kind(step)
        source = self.sources[kind]
        assert source is not None
        return Batch(kind, tuple(source.item(step * batch + k) for k in range(batch)))
