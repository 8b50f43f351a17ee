"""Overlap rules: how a window takes up where the one before it ended.

`ReuseRule` is VidRD's reuse-and-diffuse ("Reuse and Diffuse", arXiv 2309.03549): the initial noise is reused,
new frames' noise depends on the past, and the first frames retrace recorded states for part of the way.
`ContextRule` shows the denoiser the last frames clean, for networks trained with a noise level per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.levels import Levels, NoiseSchedule
from latentvid.core.overlap import Order
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.extension.plan import Window
from latentvid.noise.reuse import reuse_noise
from latentvid.sampling.context import keep_given, with_clean_context
from latentvid.sampling.solver import Denoise, OnStep
from latentvid.sampling.staged import StagedGuidance, TrajectoryRecorder, chain, guided_steps

if TYPE_CHECKING:
    from latentvid.noise.prior import NoisePrior


@dataclass(frozen=True)
class Tail:
    """All that a window leaves to the next one; its size does not depend on the film's length."""

    latents: Tensor
    """The window's last frames, clean, [b c m h w]."""
    noise: Tensor | None = None
    """The window's whole initial noise, [b c t h w]."""
    trajectory: Tensor | None = None
    """Recorded states of the shared frames in the next window's order, [steps b c m h w]."""

    def contiguous(self) -> Tail:
        """Return the tail laid out in memory as one read from disk is: kernels may round by layout."""
        latents, noise, states = (
            None if part is None else part.contiguous() for part in (self.latents, self.noise, self.trajectory)
        )
        assert latents is not None
        return Tail(latents, noise, states)


@dataclass(frozen=True)
class Start:
    """How a window is sampled: from which noise, through which denoiser, with which hook."""

    noise: Tensor
    denoise: Denoise
    on_step: OnStep | None = None
    recorder: TrajectoryRecorder | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    """What is done to the clean window."""


@dataclass(frozen=True)
class Setting:
    """What a window is sampled with."""

    denoise: Denoise
    prior: NoisePrior
    schedule: NoiseSchedule
    levels: Levels
    rng: Rng
    shape: LatentShape
    """Of one window."""
    device: torch.device
    noise: Tensor | None = None
    """What a window that nothing came before starts from, [b c t h w]; None is drawn from the prior."""


class OverlapRule(Protocol):
    """Prepares a window, given what the one before it left."""

    @property
    def overlap(self) -> int: ...

    @property
    def append_overlap(self) -> bool:
        """Whether the shared frames appear in the film twice, once mirrored."""
        ...

    def start(self, setting: Setting, window: Window, tail: Tail | None) -> Start: ...


class ContextRule(StrictModel):
    """The window's first frames are the last ones of the window before, given clean (or nearly so)."""

    kind: Literal["context"] = "context"
    overlap: int = Field(8, ge=1)
    context_sigma: float = Field(0.0, ge=0, lt=1)
    """Noise level at which the given frames are shown; some keeps long films from feeding on their own errors."""
    bridge: int = Field(1, ge=0)
    """Given frames, those nearest to the new ones, that are not shown but made again. By what the very nearest came out
    wrong all new frames are corrected (see `keep_given`)."""
    guidance_scale: float | None = Field(None, ge=1)
    """Guidance of windows that go on under the same prompt, where the user asks for none; null is that of the others.
    What is given says how the film goes on, and strong guidance pulls away from it. 1 is none, at half the time."""

    @property
    def append_overlap(self) -> bool:
        return False

    def shown(self, places: Sequence[int], num_frames: int) -> list[int]:
        """Return which of a window's given places are shown: not the `bridge` nearest to free ones, unless no given one
        beside them is farther away."""
        free = set(range(num_frames)) - set(places)
        far = {place: min((abs(place - other) for other in free), default=num_frames) for place in places}

        def is_farthest(place: int) -> bool:
            return far[place] >= max(far.get(place - 1, 0), far.get(place + 1, 0))

        return [place for place in places if far[place] > self.bridge or is_farthest(place)]

    def start(self, setting: Setting, window: Window, tail: Tail | None) -> Start:
        noise = _fresh(setting, window)
        if tail is None:
            return Start(noise, setting.denoise)
        given = tail.latents[:, :, -self.overlap :]
        shown = len(self.shown(range(self.overlap), setting.shape.frames))
        finish = partial(keep_given, given=given, places=range(self.overlap)) if shown < self.overlap else None
        given = given[:, :, :shown]
        level, context_noise = None, None
        if self.context_sigma:
            level = setting.schedule.level(setting.schedule.timestep_of(self.context_sigma))
            shape = setting.shape.with_frames(given.shape[2])
            rng = setting.rng.child("context")
            context_noise = setting.prior.sample(shape, rng=rng, first_frame=window.start).to(setting.device)
        denoise = with_clean_context(setting.denoise, given, context_level=level, context_noise=context_noise)
        return Start(noise, denoise, finish=finish)


class ReuseRule(StrictModel):
    """VidRD's three tricks: noise reversal, past-dependent noise, staged guidance."""

    kind: Literal["reuse"] = "reuse"
    overlap: int = Field(4, ge=1)
    order: Order = "chronological"
    """"mirror" is the paper's: windows are joined like mirror images and all frames are kept. "chronological"
    lets the shared frames keep their order, so that motion does not run backwards, and shows them once."""
    recycle: float = Field(4.0, ge=0)
    """The paper's alpha: how much of the reversed noise the new frames keep (mirror only)."""
    guidance_share: float = Field(0.4, ge=0, le=1)
    """The paper's beta: share of the steps in which the first shared frame retraces the recorded states."""

    @property
    def append_overlap(self) -> bool:
        return self.order == "mirror"

    def start(self, setting: Setting, window: Window, tail: Tail | None) -> Start:
        num_steps = len(setting.levels)
        recorder = TrajectoryRecorder(self.overlap, self.order, max(guided_steps(self.overlap, 1.0, num_steps)))
        if tail is None:
            return Start(_fresh(setting, window), setting.denoise, recorder, recorder)
        if tail.trajectory is None or tail.noise is None:
            raise UsageError("reuse needs the noise and the states of the window before, which were not recorded.")
        noise = reuse_noise(
            tail.noise,
            order=self.order,
            overlap=self.overlap,
            alpha=self.recycle,
            prior=setting.prior,
            rng=setting.rng,
            first_frame=window.start,
        ).to(setting.device)
        guidance = StagedGuidance(tail.trajectory, share=self.guidance_share, num_steps=num_steps)
        return Start(noise, setting.denoise, chain(guidance, recorder), recorder)


RuleConfig = Annotated[ContextRule | ReuseRule, Field(discriminator="kind")]


def _fresh(setting: Setting, window: Window) -> Tensor:
    if setting.noise is not None:
        return setting.noise.to(setting.device)
    return setting.prior.sample(setting.shape, rng=setting.rng, first_frame=window.start).to(setting.device)
