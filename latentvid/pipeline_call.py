"""The arguments of a call as diffusers' users type them, turned into what the pipeline computes with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentvid.core.errors import UsageError, did_you_mean
from latentvid.core.levels import Levels
from latentvid.sampling.solver import Denoise, OnStep, Renoise, Solver

StepEnd = Callable[[int, Tensor, Tensor], Tensor]
"""(step, its timestep, state after it [b c t h w]) -> the state to go on with."""
TENSOR_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for at the end of a step."""
_HARMLESS = {
    "use_safetensors": (None, True),
    "local_files_only": (None, True, False),
    "low_cpu_mem_usage": (True, False),
}
"""Arguments of diffusers' `from_pretrained`, and the values with which they ask for what is done anyway."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a batch of clips is to show and to avoid, one entry per clip."""

    prompts: list[str]
    negative: list[str]
    text: Tensor | None = None
    """Embeddings instead of the prompts, [b l d]."""
    null: Tensor | None = None
    """Embeddings instead of the negative prompts, [b l d]."""


def wording(
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    num_per_prompt: int = 1,
    width: int | None = None,
) -> Wording:
    """Gather what a call says of its clips; each prompt's clips follow each other.

    Args:
        width: of the embeddings that the network takes.

    Raises:
        UsageError: no prompt or both kinds of it, a negative prompt that goes with none, or embeddings that do not fit.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise UsageError("give a prompt (or a list of them), or else prompt_embeds: one of the two.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise UsageError("negative_prompt and negative_prompt_embeds both say what to avoid; give one.")
    times = whole(num_per_prompt, "num_videos_per_prompt")
    if times < 1:
        raise UsageError(f"num_videos_per_prompt={times} must be at least 1.")
    for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
        if embeds is not None:
            _check_embeddings(name, embeds, width)
    prompts = [""] * len(prompt_embeds) if prompt_embeds is not None else _texts("prompt", prompt)
    negative = _texts("negative_prompt", negative_prompt or "")
    negative = negative * len(prompts) if len(negative) == 1 else negative
    if len(negative) != len(prompts):
        raise UsageError(f"{len(negative)} negative prompts for {len(prompts)} prompts; give one, or one each.")
    null = negative_prompt_embeds
    if null is not None and len(null) == 1:
        null = null.expand(len(prompts), -1, -1)
    if null is not None and len(null) != len(prompts):
        raise UsageError(f"negative_prompt_embeds are of {len(null)} prompts, and there are {len(prompts)}.")
    repeated = lambda embeds: None if embeds is None else embeds.repeat_interleave(times, dim=0)  # noqa: E731
    return Wording(
        [text for text in prompts for _ in range(times)],
        [text for text in negative for _ in range(times)],
        repeated(prompt_embeds),
        repeated(null),
    )


def seeds_of(generator: Any, count: int) -> list[int]:
    """Return a seed for each of `count` clips.

    Args:
        generator: a seed (an integer of any type) or a `torch.Generator`, which is followed by the next integers where
            there are several clips; one for each clip; or None for a seed drawn from torch's global generator. A
            generator that was not drawn from yet stands for its own seed. It is drawn from here, so that the next call
            with it makes another clip.

    Raises:
        UsageError: as many as there are neither one nor clips, or something else than seeds.
    """
    several = isinstance(generator, Iterable) and getattr(generator, "ndim", 1) > 0
    given = list(generator) if several and not isinstance(generator, str | bytes) else [generator]
    if len(given) not in (1, count):
        raise UsageError(f"{len(given)} generators for {count} prompts.")
    seeds = [_seed(each) for each in given]
    return [seeds[0] + k for k in range(count)] if len(seeds) == 1 else seeds


def _seed(generator: Any) -> int:
    if generator is None:
        return int(torch.randint(2**31, ()))
    if not isinstance(generator, torch.Generator):
        return whole(generator, "generator")
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    is_fresh = torch.equal(generator.get_state(), fresh.get_state())
    drawn = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    return generator.initial_seed() if is_fresh else drawn


def initial_noise(latents: Any, shape: Sequence[int]) -> Tensor | None:
    """Return the noise that a film's first window is to start from, checked.

    Args:
        latents: [b c t h w], or None.
        shape: what it must be.

    Raises:
        UsageError: it is something else, or not finite.
    """
    if latents is None:
        return None
    if not isinstance(latents, Tensor) or tuple(latents.shape) != tuple(shape):
        found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise UsageError(
            f"latents must be a tensor [b c t h w] of {list(shape)} (the first window's noise), not {found}."
        )
    if not latents.isfinite().all():
        raise UsageError("latents hold values that are not finite.")
    return latents.float()


def on_step_end(
    pipeline: Any, callback: Callable[..., Any] | None, names: Sequence[str], embeds: Callable[[], dict[str, Any]]
) -> StepEnd | None:
    """Return a callback of diffusers as a hook of the solver; see `WatchedSolver`.

    Args:
        callback: `callback(pipeline, step, timestep, tensors) -> tensors`, called after every step of every window.
        names: the tensors that it is to see, of `TENSOR_INPUTS`; only the latents can be changed.
        embeds: returns the others.

    Raises:
        UsageError: a name that is not known; from the hook: what the callback returned cannot be gone on with.
    """
    if callback is None:
        return None
    names = list(getattr(callback, "tensor_inputs", names))
    unknown = [name for name in names if name not in TENSOR_INPUTS]
    if unknown:
        known = ", ".join(TENSOR_INPUTS)
        raise UsageError(f"callback_on_step_end_tensor_inputs: {unknown[0]!r} is not known; known: {known}.")
    fixed = embeds() if set(names) - {"latents"} else {}

    def after_step(step: int, timestep: Tensor, x: Tensor) -> Tensor:
        seen = {name: x if name == "latents" else fixed[name] for name in names}
        returned = callback(pipeline, step, timestep, dict(seen)) or {}
        for name in returned:
            if name != "latents" and returned[name] is not seen.get(name):
                raise UsageError(f"callback_on_step_end changed {name!r}; it can change the latents only.")
        changed = returned.get("latents", x)
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            raise UsageError(f"callback_on_step_end must return latents of {list(x.shape)}.")
        return changed.to(x)

    return after_step


@dataclass(frozen=True)
class WatchedSolver:
    """A solver whose states are shown to a hook at the end of every step, and may be replaced there."""

    solver: Solver
    after_step: StepEnd

    @property
    def calls_per_step(self) -> int:
        return self.solver.calls_per_step

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        renoise: Renoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        def at_start(step: int, x: Tensor) -> Tensor:
            if step:
                x = self.after_step(step - 1, levels.timestep[step - 1], x)
            return x if on_step is None else on_step(step, x)

        clean = self.solver(denoise, x, levels, renoise=renoise, on_step=at_start)
        return self.after_step(len(levels) - 1, levels.timestep[-2], clean)


def refuse_unknown(where: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for the first of the arguments that `where` does not take."""
    for name in unknown:
        raise UsageError(f"{where} takes no {name!r}{did_you_mean(name, known)}")


def not_harmless(arguments: dict[str, Any]) -> list[str]:
    """Return the arguments of diffusers' `from_pretrained` that ask for something else than what is done anyway."""
    return [name for name, value in arguments.items() if value not in _HARMLESS.get(name, ())]


def as_dtype(dtype: Any) -> torch.dtype | None:
    """Return the number format that `torch_dtype` or `dtype` names; None for "auto", which is that of the file here.

    Raises:
        UsageError: it names none that networks are computed in.
    """
    known = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    known |= {str(found).removeprefix("torch."): found for found in known.values()}
    if dtype is None or dtype == "auto":
        return None
    found = known.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in known.values():
        raise UsageError(f"dtype={dtype!r} is not computed in; take torch.float32, torch.bfloat16 or torch.float16.")
    return found


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name} must be a text or a list of texts, not {given!r:.80}.")
    return texts


def whole(number: Any, name: str) -> int:
    """Return an integer of any type as Python's.

    Raises:
        UsageError: it is none.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise UsageError(f"{name}={number!r:.80} is no integer.") from None


def _check_embeddings(name: str, embeds: Any, width: int | None) -> None:
    fits = isinstance(embeds, Tensor) and embeds.ndim == 3 and len(embeds) and width in (None, embeds.shape[-1])
    if not fits:
        found = list(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise UsageError(f"{name} must be a tensor [b l {width}] (prompts, tokens, width), not {found}.")
