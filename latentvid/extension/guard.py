"""Bringing a window's latents back towards the first window's, so that errors do not pile up along a film.

Per-channel means and spreads are matched, as in adaptive instance normalisation (arXiv 1703.06868), but only beyond a
limit and with a weight that grows along the window: a film that does not drift is left as it is, and no seam is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentvid.core.levels import Levels
from latentvid.extension.rollout import MadeWindow
from latentvid.extension.rules import OverlapRule, ReuseRule
from latentvid.sampling.staged import overlap_frames

_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of every channel over time and space, each [b c 1 1 1]."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Statistics:
        """Measure [b c t h w]."""
        places = (2, 3, 4)
        mean, spread = latents.mean(places, keepdim=True), latents.std(places, correction=0, keepdim=True)
        return cls(mean, spread.clamp_min(_LEAST_SPREAD))

    def within(self, limit: float, reference: Statistics) -> Statistics:
        """Return the nearest statistics that lie within `limit` reference spreads of `reference`."""
        reach = limit * reference.spread
        mean = self.mean.clamp(reference.mean - reach, reference.mean + reach)
        spread = self.spread.clamp((reference.spread - reach).clamp_min(_LEAST_SPREAD), reference.spread + reach)
        return Statistics(mean, spread)


def bring_back(
    made: MadeWindow, reference: Statistics, limit: float, *, rule: OverlapRule, levels: Levels
) -> tuple[MadeWindow, bool]:
    """Return a window whose statistics end within the limit, and whether anything was changed.

    Frame j of the n new ones takes (j + 1) / n of the correction. Frames that the window shares with the one before are
    left as they were; what the next window starts from is corrected along.

    Args:
        reference: statistics to stay near.
        limit: how far means and spreads may lie from these, in units of their spread.
        rule, levels: that the window was made by.
    """
    found = Statistics.of(made.latents)
    wanted = found.within(limit, reference)
    if torch.equal(wanted.mean, found.mean) and torch.equal(wanted.spread, found.spread):
        return made, False
    count = made.latents.shape[2]
    weights = (torch.arange(1, count + 1, device=made.latents.device) / count).view(1, 1, -1, 1, 1)
    whole = wanted.mean + (made.latents - found.mean) * (wanted.spread / found.spread)
    latents = torch.lerp(made.latents, whole, weights.to(made.latents))
    tail = made.tail
    kept = max(0, tail.latents.shape[2] - count)
    clean = torch.cat([tail.latents[:, :, :kept], latents[:, :, count - (tail.latents.shape[2] - kept) :]], dim=2)
    trajectory = tail.trajectory
    if trajectory is not None and isinstance(rule, ReuseRule):
        # A recorded state is alpha * clean + sigma * eps: its clean part moves, its noise stays.
        moved = overlap_frames(clean - tail.latents, rule.overlap, rule.order)
        trajectory = torch.stack([x + levels[i].alpha.to(x) * moved for i, x in enumerate(trajectory)])
    return replace(made, latents=latents, tail=replace(tail, latents=clean, trajectory=trajectory)), True
