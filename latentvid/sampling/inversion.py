"""From clean latents back to noise: the trajectory that Euler's solver would have come along.

DDIM inversion (arXiv 2010.02502), made exact by solving each step for its start by fixed-point iteration, as
in arXiv 2309.04907. It gives a real clip the recorded states that staged guidance asks of a generated one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentvid.core.levels import Level, Levels
from latentvid.sampling.solver import Denoise


def invert(denoise: Denoise, clean: Tensor, levels: Levels, *, num_iterations: int = 3) -> Tensor:
    """Return the states at the start of every step, [num_steps b c t h w], noisiest first.

    Euler's solver leads from the first of them back to `clean`, as nearly as the iterations have converged; one
    iteration is plain DDIM inversion.

    Args:
        denoise: the clean estimate; guidance stronger than none makes the iteration diverge.
        clean: latents [b c t h w]; left unchanged.
        num_iterations: denoiser calls per step.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations={num_iterations} must be at least 1")
    states: list[Tensor] = []
    after, eps = clean, torch.zeros_like(clean)
    for i in reversed(range(len(levels))):
        now, then = levels[i], levels[i + 1]
        # A first guess along the noise estimate of the step just undone.
        x = now.alpha / then.alpha * after + (now.sigma - now.alpha / then.alpha * then.sigma) * eps
        for _ in range(num_iterations):
            estimate = denoise(x, now)
            x_before, x = x, _undo(x, estimate, after, now, then)
        eps = (x_before - now.alpha * estimate) / now.sigma
        after = x
        states.append(x)
    return torch.stack(states[::-1])


def _undo(x: Tensor, estimate: Tensor, after: Tensor, now: Level, then: Level) -> Tensor:
    """Solve `ddim(x, estimate(x)) == after` for x, the estimate taken at the last guess.

    Solved for the clean estimate where noise prevails and for the noise estimate elsewhere: either way the guess
    enters with a factor below one, and neither end (alpha = 0, sigma = 0) is divided by.
    """
    step = now.sigma * then.alpha - now.alpha * then.sigma
    if now.alpha * then.alpha < now.sigma * then.sigma:
        return (now.sigma * after - step * estimate) / then.sigma
    eps = (x - now.alpha * estimate) / now.sigma
    return (now.alpha * after + step * eps) / then.alpha
