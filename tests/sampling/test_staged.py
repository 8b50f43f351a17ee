"""Staged guidance retraces the previous window for as long as VidRD says, in either order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.levels import Level
from latentvid.sampling import SOLVERS
from latentvid.sampling.staged import StagedGuidance, TrajectoryRecorder, chain, guided_steps, overlap_frames
from tests.sampling.toys import angles

SHAPE = (2, 3, 8, 4, 4)


def denoise(x: Tensor, level: Level) -> Tensor:
    """Mixes frames, so that guided frames move the others."""
    return 0.5 * x + 0.2 * x.mean(2, keepdim=True).cos()


@pytest.mark.parametrize(
    ("overlap", "share", "num_steps", "expected"),
    [
        (4, 0.4, 50, [20, 15, 10, 5]),
        (2, 0.4, 50, [20, 10]),
        (4, 1.0, 50, [50, 38, 25, 13]),
        (4, 0.0, 50, [0, 0, 0, 0]),
        (4, 0.4, 25, [10, 8, 5, 3]),
        (1, 0.07, 100, [7]),
        (0, 0.4, 50, []),
    ],
)
def test_the_published_counts(overlap: int, share: float, num_steps: int, expected: list[int]) -> None:
    assert guided_steps(overlap, share, num_steps) == expected
    trajectory = torch.zeros(num_steps, 1, 1, overlap, 1, 1)
    hook = StagedGuidance(trajectory, share=share, num_steps=num_steps)
    overwritten = sum((hook(i, torch.ones(1, 1, 8, 1, 1)) == 0).flatten() for i in range(num_steps))
    assert overwritten.tolist() == expected + [0] * (8 - overlap)


def run(solver: str, x: Tensor, *hooks: object, num_steps: int = 10) -> Tensor:
    return SOLVERS.get(solver)()(
        denoise, x, angles(num_steps), renoise=lambda i: torch.randn_like(x), on_step=chain(*hooks)
    )


@pytest.mark.parametrize("order", ["mirror", "chronological"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_next_window_retraces_the_last_frames(solver: str, order: str) -> None:
    states: list[Tensor] = []

    def spy(i: int, x: Tensor) -> Tensor:
        states.append(x.clone())
        return x

    recorder = TrajectoryRecorder(4, order, 10)
    run(solver, torch.randn(SHAPE), recorder, spy)
    assert recorder.trajectory.shape == (10, 2, 3, 4, 4, 4)
    first = states[:]
    states.clear()
    run(solver, torch.randn(SHAPE), StagedGuidance(recorder.trajectory, share=0.5, num_steps=10), spy)
    for i in range(10):
        for j in range(4):
            source = 7 - j if order == "mirror" else 4 + j
            retraced = torch.equal(states[i][:, :, j], first[i][:, :, source])
            assert retraced == (i < guided_steps(4, 0.5, 10)[j])
        assert not torch.equal(states[i][:, :, 4:], first[i][:, :, 4:])


def test_the_recorder_sees_the_overwritten_state_and_keeps_what_was_asked() -> None:
    trajectory = torch.randn(10, 2, 3, 6, 4, 4)
    recorder = TrajectoryRecorder(4, "chronological", 3)
    run("euler", torch.randn(SHAPE), StagedGuidance(trajectory, share=1.0, num_steps=10), recorder)
    assert recorder.trajectory.shape == (3, 2, 3, 4, 4, 4)
    # Frames 4 and 5 of the window, both guided in step 1, are the first of the next window's four.
    assert torch.equal(recorder.trajectory[1][:, :, :2], trajectory[1][:, :, 4:])


def test_no_share_is_no_guidance() -> None:
    x = torch.randn(SHAPE)
    hook = StagedGuidance(torch.randn(0, 2, 3, 4, 4, 4), share=0.0, num_steps=10)
    assert torch.equal(run("euler", x, hook), run("euler", x))


def test_hooks_apply_from_left_to_right_and_none_is_none() -> None:
    x = torch.ones(1)
    assert chain(lambda i, x: x + i, lambda i, x: 10 * x)(2, x).item() == 30
    assert chain()(2, x) is x


def test_overlap_frames() -> None:
    states = torch.arange(6.0).view(1, 1, 6, 1, 1)
    assert overlap_frames(states, 2, "mirror").flatten().tolist() == [5, 4]
    assert overlap_frames(states, 2, "chronological").flatten().tolist() == [4, 5]
    assert overlap_frames(states, 0, "chronological").shape == (1, 1, 0, 1, 1)
    with pytest.raises(UsageError, match="overlap=7"):
        overlap_frames(states, 7, "mirror")
    with pytest.raises(UsageError, match="did you mean 'mirror'"):
        overlap_frames(states, 2, "miror")


def test_misuse_is_refused() -> None:
    with pytest.raises(UsageError, match="share"):
        StagedGuidance(torch.zeros(1, 1, 1, 1, 1, 1), share=1.5, num_steps=1)
    with pytest.raises(ValueError, match="3 recorded steps cannot guide 5"):
        StagedGuidance(torch.zeros(3, 1, 1, 1, 1, 1), share=0.5, num_steps=10)
    recorder = TrajectoryRecorder(1, "mirror", 5)
    recorder(0, torch.zeros(1, 1, 2, 1, 1))
    with pytest.raises(ValueError, match="one recorder a run"):
        recorder(0, torch.zeros(1, 1, 2, 1, 1))
