"""A window that is shown clean frames gives them back and tells the denoiser which they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentvid.core.levels import Level
from latentvid.sampling import SOLVERS
from latentvid.sampling.context import with_clean_context
from tests.sampling.toys import angles

CLEAN = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_given_frames_come_back_to_the_bit(solver: str) -> None:
    seen: list[tuple[Tensor, Level]] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        seen.append((x, level))
        return 0.5 * x + x.mean(2, keepdim=True)

    x = torch.randn(2, 3, 5, 4, 4)
    end = SOLVERS.get(solver)()(with_clean_context(denoise, CLEAN), x, angles(6), renoise=lambda i: torch.randn_like(x))
    assert torch.equal(end[:, :, :2], CLEAN)
    for state, level in seen:
        assert torch.equal(state[:, :, :2], CLEAN)
        assert level.alpha.shape == level.sigma.shape == level.timestep.shape == (2, 5)
        assert level.alpha[:, :2].eq(1).all()
        assert level.sigma[:, :2].eq(0).all()
        assert level.timestep[:, :2].eq(0).all()
        assert level.timestep[:, 2:].gt(0).all()


def test_new_frames_depend_on_the_context() -> None:
    denoise = lambda x, level: x.mean(2, keepdim=True).expand_as(x)  # noqa: E731
    x = torch.randn(2, 3, 5, 4, 4)
    ends = [SOLVERS.get("euler")()(with_clean_context(denoise, c), x, angles(6)) for c in (CLEAN, CLEAN + 1)]
    assert (ends[1] - ends[0])[:, :, 2:].mean() > 0.2


def test_a_little_noise_on_the_context() -> None:
    noise = torch.randn_like(CLEAN)
    at = Level(torch.tensor(0.98), torch.tensor(0.2), torch.tensor(40.0))

    def denoise(x: Tensor, level: Level) -> Tensor:
        torch.testing.assert_close(x[:, :, :2], 0.98 * CLEAN + 0.2 * noise)
        assert level.timestep[0, 1] == 40
        assert level.timestep[0, 2] != 40
        return 0.5 * x

    shown = with_clean_context(denoise, CLEAN, context_level=at, context_noise=noise)
    end = SOLVERS.get("euler")()(shown, torch.randn(2, 3, 5, 4, 4), angles(4))
    assert torch.equal(end[:, :, :2], CLEAN)
    with pytest.raises(ValueError, match="go together"):
        with_clean_context(denoise, CLEAN, context_level=at)
