"""Staged guidance: a window's first frames retrace the previous window's last ones for part of the way.

VidRD's "denoising with staged guidance" ("Reuse and Diffuse", arXiv 2309.03549), as hooks on the solver. One
window records the states of its last frames, the next is overwritten with them, the first frame for the most steps.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.overlap import check_overlap
from latentvid.sampling.solver import OnStep


def guided_steps(overlap: int, share: float, num_steps: int) -> list[int]:
    """Return the number of guided steps for each of the `overlap` frames.

    >>> guided_steps(4, 0.4, 50)
    [20, 15, 10, 5]
    """
    # Rounded first, so that 0.07 * 100 does not count as 7.000000000000001 and guide an eighth step.
    bounds = (round(share * num_steps * (overlap - j) / overlap, 9) for j in range(overlap))
    return [min(num_steps, math.ceil(bound)) for bound in bounds]


def overlap_frames(states: Tensor, overlap: int, order: str) -> Tensor:
    """Return the last `overlap` frames of `states` [... t h w] as the next window's first ones.

    "mirror" reverses them, as VidRD does with the noise; "chronological" keeps their order.
    """
    num_frames = states.shape[-3]
    check_overlap(overlap, order, num_frames=num_frames)
    frames = states[..., num_frames - overlap :, :, :]
    return frames.flip(-3) if order == "mirror" else frames


class TrajectoryRecorder:
    """An `on_step` that keeps, step by step, what the next window will be guided with; the state passes unchanged.

    Goes last among the hooks of a solver, since it must see the state after it was overwritten. Holds
    num_steps * b * c * overlap * h * w numbers, however long the film.

    Args:
        overlap: number M of frames shared with the next window.
        order: "mirror" or "chronological".
        num_steps: record only this many steps, from the first; guided_steps(...)[0] is all that the next window needs.
    """

    def __init__(self, overlap: int, order: str, num_steps: int) -> None:
        self.overlap, self.order, self.num_steps = overlap, order, num_steps
        self._states: list[Tensor] = []

    def __call__(self, i: int, x: Tensor) -> Tensor:
        if i < self.num_steps:
            if i != len(self._states):
                raise ValueError(f"step {i} cannot be recorded after {len(self._states)} steps; use one recorder a run")
            self._states.append(overlap_frames(x.detach(), self.overlap, self.order).clone())
        return x

    @property
    def trajectory(self) -> Tensor:
        """The recorded states, [steps b c M h w], frames in the order of the next window."""
        return torch.stack(self._states)


class StagedGuidance:
    """An `on_step` that overwrites frame j of M with the recorded state while i < share * num_steps * (M - j) / M.

    Args:
        trajectory: states of the M frames at the start of each step, [steps b c M h w], in the order of this
            window: a recorder's, or `overlap_frames` of an inverted clip's.
        share: VidRD's beta, 0..1: the share of the steps in which the first frame is guided.
        num_steps: steps of the solver, the same as when the trajectory was recorded.
    """

    def __init__(self, trajectory: Tensor, *, share: float, num_steps: int) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"staged guidance: share={share} must lie between 0 and 1.")
        self.trajectory = trajectory
        self.steps = guided_steps(trajectory.shape[3], share, num_steps)
        if len(trajectory) < max(self.steps, default=0):
            raise ValueError(f"{len(trajectory)} recorded steps cannot guide {max(self.steps)}")

    def __call__(self, i: int, x: Tensor) -> Tensor:
        num_guided = sum(i < steps for steps in self.steps)
        if num_guided == 0:
            return x
        return torch.cat([self.trajectory[i][:, :, :num_guided].to(x), x[:, :, num_guided:]], dim=2)


def chain(*hooks: OnStep) -> OnStep:
    """Return one `on_step` that applies the given ones from left to right."""
    return lambda i, x: reduce(lambda state, hook: hook(i, state), hooks, x)
