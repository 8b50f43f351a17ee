"""The rollout with a denoiser whose answer is known: overlap rules, independence of length, tails, resuming."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.levels import Level, NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rollout import MadeWindow, roll_out
from latentvid.extension.rules import ContextRule, ReuseRule, Setting, Tail
from latentvid.noise import PRIORS
from latentvid.noise.reuse import reuse_noise
from latentvid.pipeline import validate_rule
from latentvid.sampling import SOLVERS
from latentvid.sampling.solver import Denoise

WINDOW, OVERLAP, STEPS = 6, 2, 5
SHAPE = LatentShape(2, 1, WINDOW, 2, 3)
SCHEDULE = NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0})
RULES: list[Any] = [
    ContextRule(overlap=OVERLAP),
    ContextRule(overlap=OVERLAP, context_sigma=0.1),
    ContextRule(overlap=OVERLAP, bridge=0),
    ReuseRule(overlap=OVERLAP),
    ReuseRule(overlap=OVERLAP, order="mirror"),
    ReuseRule(overlap=OVERLAP, guidance_share=0.0),
    ReuseRule(overlap=OVERLAP, guidance_share=1.0),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: "-".join(map(str, r.model_dump().values())))


def smooth(x: Tensor, level: Level) -> Tensor:
    """A clean estimate that depends smoothly on the whole window and on the level."""
    neighbours = (x + x.roll(1, 2) + x.roll(-1, 2)) / 3
    sigma = level.per_frame(x.shape[0], x.shape[2]).sigma.float()[:, None, :, None, None]
    return torch.tanh(neighbours) * (1 - 0.3 * sigma)


def count_up(x: Tensor, level: Level) -> Tensor:
    """Continues what it is shown: each noisy frame is one more than the last clean one, per frame of distance."""
    spelled = level.per_frame(x.shape[0], x.shape[2])
    num_clean = int((spelled.sigma[0] == 0).sum())
    last = x[:, :, num_clean - 1 : num_clean] if num_clean else torch.full_like(x[:, :, :1], -1.0)
    steps = torch.arange(x.shape[2], dtype=x.dtype) - (num_clean - 1 if num_clean else -1)
    return last + steps.view(1, 1, -1, 1, 1)


def setting(
    denoise: Denoise = smooth, *, seeds: Any = (1, 2), prior: str = "progressive", steps: int = STEPS
) -> Setting:
    shape = LatentShape(len(seeds), *SHAPE.dims[1:])
    levels = SCHEDULE.levels(steps)
    return Setting(denoise, PRIORS.get(prior)(), SCHEDULE, levels, Rng(seeds), shape, torch.device("cpu"))


def film(rule: Any, num_frames: int, *, solver: str = "euler", start: int = 0, tail: Any = None, **more: Any) -> Any:
    plan = FilmPlan(num_frames, WINDOW, rule.overlap, rule.append_overlap)
    settled = setting(**more)
    return list(roll_out(plan, rule, SOLVERS.get(solver)(), lambda _: settled, tail=tail, first_window=start))


def joined(windows: list[MadeWindow]) -> Tensor:
    return torch.cat([made.latents[:, :, : made.window.num_new] for made in windows], dim=2)


@every_rule
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_first_frames_do_not_depend_on_the_films_length(rule: Any, solver: str) -> None:
    long = joined(film(rule, 23, solver=solver))
    assert long.shape[2] == 23
    assert long.isfinite().all()
    for num_frames in (1, WINDOW, WINDOW + 1, 17):
        assert torch.equal(joined(film(rule, num_frames, solver=solver)), long[:, :, :num_frames])


@every_rule
def test_a_film_can_go_on_from_any_window(rule: Any) -> None:
    whole = film(rule, 23, solver="ancestral")
    for k in range(1, len(whole)):
        rest = film(rule, 23, solver="ancestral", start=k, tail=whole[k - 1].tail)
        assert torch.equal(joined(rest), joined(whole[k:]))


@every_rule
def test_tails_are_of_one_size_and_hold_nothing_else(rule: Any) -> None:
    def sizes(tail: Tail) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for t in (tail.latents, tail.noise, tail.trajectory) if t is not None]

    windows = film(rule, 40)
    assert len({str(sizes(made.tail)) for made in windows}) == 1
    last = windows[-1].tail.latents
    assert last.shape[2] == OVERLAP
    assert last.untyped_storage().nbytes() == last.numel() * last.element_size()


@every_rule
def test_a_film_depends_on_its_own_seed_only(rule: Any) -> None:
    together = joined(film(rule, 15, solver="ancestral", seeds=(7, 8)))
    for k, seed in enumerate((7, 8)):
        alone = joined(film(rule, 15, solver="ancestral", seeds=(seed,)))
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1])


def test_context_continues_what_it_is_shown() -> None:
    found = joined(film(ContextRule(overlap=OVERLAP), 30, denoise=count_up))
    expected = torch.arange(30.0).view(1, 1, -1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_a_window_gets_wrong_in_all_frames_does_not_show_at_the_join() -> None:
    def off(x: Tensor, level: Level) -> Tensor:
        spelled = level.per_frame(x.shape[0], x.shape[2])
        num_clean = int((spelled.sigma[0] == 0).sum())
        return count_up(x, level) + 3.0 * (torch.arange(x.shape[2]) >= num_clean).view(1, 1, -1, 1, 1) * bool(num_clean)

    made = {bridge: joined(film(ContextRule(overlap=4, bridge=bridge), 20, denoise=off)) for bridge in (0, 1, 2)}
    expected = torch.arange(20.0).view(1, 1, -1, 1, 1).expand_as(made[1])
    for bridge in (1, 2):
        torch.testing.assert_close(made[bridge], expected, atol=1e-4, rtol=0)
    assert (made[0] - expected).abs()[:, :, WINDOW:].min() > 2.9


def test_context_may_be_shown_with_a_little_noise() -> None:
    levels = []

    def spy(x: Tensor, level: Level) -> Tensor:
        levels.append(level.per_frame(x.shape[0], x.shape[2]))
        return smooth(x, level)

    film(ContextRule(overlap=OVERLAP, context_sigma=0.1, bridge=0), WINDOW + 1, denoise=spy)
    first, second = levels[:STEPS], levels[STEPS:]
    assert all((level.sigma == level.sigma[0, 0]).all() for level in first)
    for level in second:
        torch.testing.assert_close(level.sigma[:, :OVERLAP], torch.full((2, OVERLAP), 0.1, dtype=torch.float64))
        torch.testing.assert_close(level.timestep[:, :OVERLAP], torch.full((2, OVERLAP), 100.0, dtype=torch.float64))


@pytest.mark.parametrize("order", ["mirror", "chronological"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_reuse_retraces_the_recorded_states(order: str, share: float) -> None:
    """Against two windows sampled by hand with DDIM's formula, the overlap overwritten as the paper says."""
    rule = ReuseRule(overlap=OVERLAP, order=order, guidance_share=share)
    first, second = film(rule, 2 * WINDOW - (0 if order == "mirror" else OVERLAP))
    settled = setting()
    states_1, clean_1 = _by_hand(settled.prior.sample(SHAPE, rng=settled.rng), {})
    torch.testing.assert_close(first.latents, clean_1)
    noise = reuse_noise(
        states_1[0],
        order=order,
        overlap=OVERLAP,
        alpha=rule.recycle,
        prior=settled.prior,
        rng=settled.rng,
        first_frame=second.window.start,
    )
    overwritten: dict[tuple[int, int], Tensor] = {}
    for j in range(OVERLAP):
        source = WINDOW - 1 - j if order == "mirror" else WINDOW - OVERLAP + j
        for i in range(math.ceil(round(share * STEPS * (OVERLAP - j) / OVERLAP, 9))):
            overwritten[i, j] = states_1[i][:, :, source]
    assert overwritten
    _, clean_2 = _by_hand(noise, overwritten)
    new_from = 0 if order == "mirror" else OVERLAP
    torch.testing.assert_close(second.latents, clean_2[:, :, new_from:])


def _by_hand(x: Tensor, overwritten: dict[tuple[int, int], Tensor]) -> tuple[list[Tensor], Tensor]:
    levels, states = SCHEDULE.levels(STEPS), []
    for i in range(STEPS):
        x = x.clone()
        for (step, frame), state in overwritten.items():
            if step == i:
                x[:, :, frame] = state
        states.append(x)
        sigma, after = float(levels.sigma[i]), float(levels.sigma[i + 1])
        clean = smooth(x, levels[i])
        eps = (x - (1 - sigma) * clean) / sigma
        x = (1 - after) * clean + after * eps
    return states, x


def test_windows_that_continue_need_a_tail() -> None:
    with pytest.raises(ValueError, match="needs its tail"):
        film(ContextRule(overlap=OVERLAP), 20, start=1)
    plan = FilmPlan(4, WINDOW, OVERLAP, given=8)
    with pytest.raises(ValueError, match="needs its tail"):
        next(roll_out(plan, ContextRule(overlap=OVERLAP), SOLVERS.get("euler")(), lambda _: setting()))


def test_reuse_needs_what_reuse_recorded() -> None:
    tail = film(ContextRule(overlap=OVERLAP), WINDOW)[0].tail
    with pytest.raises(UsageError, match="were not recorded"):
        film(ReuseRule(overlap=OVERLAP), 20, start=1, tail=tail)


def test_rules_come_from_configs() -> None:
    assert validate_rule({"kind": "reuse", "order": "mirror"}) == ReuseRule(order="mirror")
    assert validate_rule({"kind": "context", "overlap": 3}) == ContextRule(overlap=3)
    rule = ContextRule()
    assert validate_rule(rule) is rule
    for config in ({"kind": "reuze"}, {"kind": "reuse", "overlap": 0}, {"kind": "context", "ordr": 1}, {}):
        with pytest.raises(UsageError):
            validate_rule(config)
