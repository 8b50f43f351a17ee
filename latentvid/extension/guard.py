"""Bringing a window's latents back towards the first window's, so that errors do not pile up along a film.

Per-channel means and spreads are matched, as in adaptive instance normalisation (arXiv 1703.06868), but only beyond a
limit and with a weight that grows along the window: a film that does not drift is left as it is, and no seam is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.levels import Levels
from latentvid.extension.rollout import MadeWindow
from latentvid.extension.rules import OverlapRule, ReuseRule, Setting
from latentvid.sampling.staged import overlap_frames

CORRECTED = 0.1
"""How far a window may move before it is corrected: less than what is worth a warning, as corrections are gentle."""
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of every channel over time and space, each [b c 1 1 1]."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Statistics:
        """Measure [b c t h w]; every clip by itself, so that its rounding does not depend on its batch."""
        places = (2, 3, 4)
        clips = [clip[None].contiguous() for clip in latents]
        mean = torch.cat([clip.mean(places, keepdim=True) for clip in clips])
        spread = torch.cat([clip.std(places, correction=0, keepdim=True) for clip in clips])
        return cls(mean, spread.clamp_min(_LEAST_SPREAD))

    def within(self, limit: float, reference: Statistics) -> Statistics:
        """Return the nearest statistics that lie within `limit` reference spreads of `reference`."""
        reach = limit * reference.spread
        mean = self.mean.clamp(reference.mean - reach, reference.mean + reach)
        spread = self.spread.clamp((reference.spread - reach).clamp_min(_LEAST_SPREAD), reference.spread + reach)
        return Statistics(mean, spread)


def guard_limit(drift_guard: str, drift_limit: float) -> float | None:
    """Return the limit that a rollout in memory corrects by; None where it is left alone.

    Raises:
        UsageError: a guard that needs a run folder or does not exist, or a limit that is not above 0.
    """
    if drift_guard not in ("correct", "off"):
        raise UsageError(
            f"drift_guard={drift_guard!r} is not offered here: take 'correct' or 'off'; films as files have more."
        )
    if not drift_limit > 0:
        raise UsageError(f"drift_limit={drift_limit} must be above 0.")
    return drift_limit if drift_guard == "correct" else None


class LatentGuard:
    """Brings every window of a rollout back towards its first one, where it lies beyond the limit (see `bring_back`).

    Args:
        limit: how far means and spreads may lie from the first window's, in units of its spread.
        rule: that the windows are made by.
    """

    def __init__(self, limit: float, *, rule: OverlapRule) -> None:
        self.limit, self.rule = limit, rule
        self.reference: Statistics | None = None

    def __call__(self, made: MadeWindow, setting: Setting) -> MadeWindow:
        if self.reference is None:
            self.reference = Statistics.of(made.latents[:, :, : made.window.num_new])
            return made
        return bring_back(made, self.reference, self.limit, rule=self.rule, levels=setting.levels)


def bring_back(
    made: MadeWindow, reference: Statistics, limit: float, *, rule: OverlapRule, levels: Levels
) -> MadeWindow:
    """Return a window whose statistics end within the limit; `is_corrected` says whether anything was changed.

    Frame j of the n new ones takes (j + 1) / n of the correction. Frames that the window shares with the one before are
    left as they were; what the next window starts from is corrected along.

    Args:
        reference: statistics to stay near.
        limit: how far means and spreads may lie from these, in units of their spread.
        rule, levels: that the window was made by.
    """
    found = Statistics.of(made.latents)
    wanted = found.within(limit, reference)
    is_beyond = (wanted.mean != found.mean).any(1, keepdim=True) | (wanted.spread != found.spread).any(1, keepdim=True)
    if not is_beyond.any():
        return made
    count = made.latents.shape[2]
    weights = (torch.arange(1, count + 1, device=made.latents.device) / count).view(1, 1, -1, 1, 1)
    whole = wanted.mean + (made.latents - found.mean) * (wanted.spread / found.spread)
    # Clips of a batch that lie within the limit keep every bit.
    latents = torch.where(is_beyond, torch.lerp(made.latents, whole, weights.to(made.latents)), made.latents)
    tail = made.tail
    kept = max(0, tail.latents.shape[2] - count)
    clean = torch.cat([tail.latents[:, :, :kept], latents[:, :, count - (tail.latents.shape[2] - kept) :]], dim=2)
    trajectory = tail.trajectory
    if trajectory is not None and isinstance(rule, ReuseRule):
        # A recorded state is alpha * clean + sigma * eps: its clean part moves, its noise stays.
        moved = overlap_frames(clean - tail.latents, rule.overlap, rule.order)
        trajectory = torch.stack([x + levels[i].alpha.to(x) * moved for i, x in enumerate(trajectory)])
    tail = replace(tail, latents=clean, trajectory=trajectory)
    return replace(made, latents=latents, tail=tail, is_corrected=True)
