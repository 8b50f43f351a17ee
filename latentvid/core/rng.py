"""Noise as a function of a seed and a name, never of what was drawn before.

Every draw opens a fresh generator keyed by (seed, path of names), on the CPU in float32. The noise of one
sample therefore does not depend on the batch it is drawn in, on the device, or on any earlier draw; resuming
and recomputing one window need no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Rng:
    """One named stream per sample of a batch.

    >>> rng = Rng([7, 8])
    >>> rng.child("window/0").normal(4, 16).shape
    torch.Size([2, 4, 16])
    """

    def __init__(self, seeds: int | Sequence[int], *, path: str = "") -> None:
        self.seeds = (int(seeds),) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
        if not self.seeds:
            raise ValueError("Rng needs at least one seed")
        self.path = path

    def child(self, name: object) -> Rng:
        """Return the stream called `name` under this one. Equal names give equal draws."""
        return Rng(self.seeds, path=f"{self.path}/{name}")

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, *dims: int) -> Tensor:
        """Draw standard normals, float32 [b, *dims], b = number of seeds."""
        return torch.stack([torch.randn(dims, generator=g) for g in self._generators()])

    def uniform(self, *dims: int) -> Tensor:
        """Draw uniforms on [0, 1), float32 [b, *dims]."""
        return torch.stack([torch.rand(dims, generator=g) for g in self._generators()])

    def integers(self, low: int, high: int, *dims: int) -> Tensor:
        """Draw integers from low to high - 1, int64 [b, *dims]."""
        return torch.stack([torch.randint(low, high, dims, generator=g) for g in self._generators()])

    def seed_of(self, name: object) -> int:
        """Return an integer seed for the stream called `name` of the first sample (for numpy, say)."""
        return _key(self.seeds[0], f"{self.path}/{name}")

    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(_key(seed, self.path)) for seed in self.seeds]


def _key(seed: int, path: str) -> int:
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
