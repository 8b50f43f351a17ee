"""The rollout: a film of any length, one window of latents after another, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from latentvid.core.shapes import LatentShape
from latentvid.extension.plan import FilmPlan, Window
from latentvid.extension.rules import OverlapRule, Setting, Start, Tail
from latentvid.sampling.solver import Renoise, Solver


@dataclass(frozen=True)
class MadeWindow:
    """A finished window: its new frames, and what the next one needs."""

    window: Window
    latents: Tensor
    """New frames, [b c t h w]; also those beyond the film's end (`window.num_new` are to be kept), since a decoder
    that is given other chunks rounds otherwise, and a shorter film is to be the beginning of a longer one."""
    tail: Tail
    is_corrected: bool = False
    """Whether a guard changed it."""


Guard = Callable[[MadeWindow, Setting], MadeWindow]
"""Returns a window as the next one is to start from it, given what it was sampled with."""
SettingAt = Callable[[Window], Setting]
"""A film may change its prompt on the way, hence a setting per window."""


def roll_out(
    plan: FilmPlan,
    rule: OverlapRule,
    solver: Solver,
    setting_at: SettingAt,
    *,
    tail: Tail | None = None,
    first_window: int = 0,
    rule_at: Callable[[Window], OverlapRule] | None = None,
    guard: Guard | None = None,
) -> Iterator[MadeWindow]:
    """Yield the windows of a film in order. Window k is a function of (settings, tail of window k - 1).

    Args:
        plan: the windows.
        rule: how a window continues the one before.
        solver: walks a window's noise down to clean latents.
        setting_at: denoiser, prior, levels and random streams for a window.
        tail: what came before `first_window`: a finished window's tail, or a given clip's.
        first_window: where to go on; 0 starts the film.
        rule_at: the rule of single windows, of the same overlap; by default `rule` for all.
        guard: corrects a window before the next one starts from it.

    Raises:
        ValueError: windows came before, and their tail is missing.
    """
    if tail is None and (first_window or plan.given):
        raise ValueError(f"window {first_window} continues what came before it and needs its tail")
    for index in range(first_window, len(plan)):
        window = plan[index]
        setting = setting_at(window)
        made = make_window(window, rule_at(window) if rule_at else rule, solver, setting, tail)
        made = made if guard is None else guard(made, setting)
        tail = made.tail.contiguous()
        yield made


def make_window(window: Window, rule: OverlapRule, solver: Solver, setting: Setting, tail: Tail | None) -> MadeWindow:
    """Sample one window, given the tail of the one before (None: the film's first)."""
    start = rule.start(setting, window, tail)
    clean = solver(
        start.denoise,
        start.noise,
        setting.levels,
        renoise=_renoise(setting, window, start),
        on_step=start.on_step,
    )
    if start.finish is not None:
        clean = start.finish(clean)
    first_new = window.new_from - window.start
    recorded = start.recorder.trajectory if start.recorder else None
    noise = start.noise if start.recorder else None
    return MadeWindow(window, clean[:, :, first_new:], Tail(clean[:, :, -rule.overlap :].clone(), noise, recorded))


def _renoise(setting: Setting, window: Window, start: Start) -> Renoise:
    """Noise for stochastic solvers: from the prior, by absolute frame, another stream for every step."""
    shape: LatentShape = setting.shape

    def renoise(step: int) -> Tensor:
        rng = setting.rng.child(f"step/{step}")
        return setting.prior.sample(shape, rng=rng, first_frame=window.start).to(start.noise.device)

    return renoise
