"""Latents of several sources as one: parts drawn from by weights, the last clips of each held out.

Joint training on several kinds of data keeps what each of them teaches (PYoCo, arXiv 2305.10474; VidRD, arXiv
2309.03549). Whether a batch is of videos or of images is not decided here: they do not stack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng


class Latents(Protocol):
    """Numbered clips as latents, each with its captions."""

    captions: list[list[str]]

    def __len__(self) -> int: ...

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w]."""
        ...


class Mixture:
    """Parts under one numbering: the clips of a part follow those of the part before.

    A mixture of one part draws what that part alone would.

    Args:
        parts: at least one, none of them empty, with latents of one size.
        weights: how often each is drawn from, in any unit; by default equally.

    Raises:
        UsageError: the latents differ in channels, height or width.
    """

    def __init__(self, parts: Sequence[Latents], weights: Sequence[float] | None = None) -> None:
        self.parts = tuple(parts)
        weights = weights or [1.0] * len(self.parts)
        self._bounds = [bound / sum(weights) for bound in accumulate(weights)]
        self._starts = [0, *accumulate(len(part) for part in self.parts)]
        self.captions = [texts for part in self.parts for texts in part.captions]
        sizes = [[part.latents(0).shape[axis] for axis in (0, 2, 3)] for part in self.parts]
        for number, size in enumerate(sizes):
            if size != sizes[0]:
                raise UsageError(
                    f"part {number} of the mixture has latents of {size} (channels, height, width), part 0 of"
                    f" {sizes[0]}; prepare them in one size."
                )

    def __len__(self) -> int:
        return self._starts[-1]

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w]."""
        part = bisect_right(self._starts, index) - 1
        return self.parts[part].latents(index - self._starts[part])

    def shares(self, count: int) -> list[int]:
        """Return how many of `count` clips fall to each part, by their weights."""
        marks = [0, *(round(bound * count) for bound in self._bounds)]
        return [stop - start for start, stop in pairwise(marks)]

    def held_out(self, count: int) -> list[int]:
        """Return the numbers of the last clips of each part, `count` in all; any first few are of all parts."""
        placed = [
            ((k + 0.5) / share, stop - share + k)
            for share, stop in zip(self.shares(count), self._starts[1:], strict=True)
            for k in range(share)
        ]
        return [number for _, number in sorted(placed)]

    def draw(self, rng: Rng, num_clips: int, *, held_out: int) -> list[int]:
        """Return the numbers of clips drawn with replacement, none of those that `held_out` clips take away."""
        drawn = [
            start + rng.integers(0, len(part) - share, num_clips)[0]
            for start, part, share in zip(self._starts, self.parts, self.shares(held_out), strict=False)
        ]
        chances = rng.child("part").uniform(num_clips)[0]
        chosen = torch.bucketize(chances, torch.tensor(self._bounds[:-1]), right=True)
        return torch.stack(drawn).gather(0, chosen[None])[0].tolist()
