"""What a solver is: it walks a state x = alpha * clean + sigma * eps down the levels, asking for the clean estimate.

Guidance, prediction types, context and conditioning are composed around the denoiser, reuse around `on_step`;
a solver knows of none of them. Correlated noise asks for nothing in a deterministic solver; a stochastic one
must draw what it injects from the model's prior, through `renoise`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from latentvid.core.levels import Level, Levels

Denoise = Callable[[Tensor, Level], Tensor]
"""(x [b c t h w], level) -> the clean estimate, same shape."""

Renoise = Callable[[int], Tensor]
"""step index -> noise from the model's prior, unit variance, [b c t h w]; another draw for each step."""

OnStep = Callable[[int, Tensor], Tensor]
"""(step index, state at the start of the step) -> the state to go on with."""


class Solver(Protocol):
    """Turns a state at the first of the levels into a clean one."""

    @property
    def calls_per_step(self) -> int:
        """Denoiser calls in each step but the last, which always takes one."""
        ...

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        renoise: Renoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return the clean end of the walk, [b c t h w].

        Args:
            denoise: the clean estimate at a state and a level.
            x: state at levels[0], float32 [b c t h w]; left unchanged. From nothing that is the prior's noise,
                unscaled, also where alpha[0] is not quite zero: diffusers' models were trained around that.
            levels: noisiest first, the last one clean, or nearly so.
            renoise: noise from the prior; deterministic solvers do not ask for it.
            on_step: sees, and may replace, the state at the start of every step.
        """
        ...


def ddim(x: Tensor, clean: Tensor, now: Level, then: Level) -> Tensor:
    """Move a state from one level to the next along a fixed clean estimate (DDIM, arXiv 2010.02502, eta = 0).

    Free of divisions by alpha, so it may start at pure noise; at sigma = 0 it returns `clean`.
    """
    kept = then.sigma / now.sigma
    return kept * x + (then.alpha - kept * now.alpha) * clean
