"""What temporal layers must know of the batch that passes through an image network: its frames and its past.

Image networks see [b*t c h w] and know nothing of t. The network that owns the injected layers holds one
`ClipContext`, which all its temporal layers share, and sets it around each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError


@dataclass
class StreamState:
    """Where a film stands in a network between two of its parts: the frames that layers still need, and counts.

    A fresh one stands at the start of a film. `tensors` are [b k c h w] for temporal layers in image networks and
    [b c k h w] for video networks, by the layer's name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    num_frames_seen: int = 0
    """Frames, or latents, that went through the network."""
    frames_per_pass: int = 0
    """Frames that one pass takes, fixed at the film's start since kernels round by it; 0 before, or where any number
    gives the same."""
    is_ending: bool = False
    """The film's last frames are inside the pass that runs."""

    def detach(self) -> StreamState:
        return replace(self, tensors={name: value.detach() for name, value in self.tensors.items()})

    def put(self, name: str, x: Tensor) -> None:
        """Let frames [b c t h w] wait behind those that wait under `name`."""
        held = self.tensors.get(name)
        self.tensors[name] = x if held is None else torch.cat([held, x], dim=2)

    def take(self, name: str, num_frames: int) -> Tensor:
        """Remove the oldest frames that wait under `name` and return them."""
        waiting = self.tensors[name]
        # A copy, not a view: a view would keep the whole part alive.
        self.tensors[name] = waiting[:, :, num_frames:].clone()
        return waiting[:, :, :num_frames]

    def limit_pass(self, num_frames: int) -> int:
        """Return how many frames a pass takes where `num_frames` fit now; the first answer is the most from then on."""
        self.frames_per_pass = min(self.frames_per_pass or num_frames, num_frames)
        return self.frames_per_pass

    def to_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return copies on the CPU of all that an exact resume needs, as safetensors takes them."""
        found = {name: _copied(value) for name, value in self.tensors.items()}
        found |= {name: torch.tensor(getattr(self, name)) for name in _COUNTS}
        return {prefix + name: value for name, value in found.items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], prefix: str = "", *, device: torch.device | str = "cpu"
    ) -> StreamState:
        """Return the state that `to_tensors` gave, as a copy on `device`.

        Raises:
            CheckpointError: a count is no number.
        """
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        past = {name: value.to(device, copy=True) for name, value in own.items() if name not in _COUNTS}
        return cls(past, count_in(own, "num_frames_seen"), count_in(own, "frames_per_pass"))


def _copied(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


_COUNTS = ("num_frames_seen", "frames_per_pass")


def count_in(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the number that a saved state holds under `name`; 0 where it holds none.

    Raises:
        CheckpointError: it is none.
    """
    return counts_in(tensors, name, 1)[0] if name in tensors else 0


def counts_in(tensors: Mapping[str, Tensor], name: str, length: int) -> list[int]:
    """Return the `length` numbers that a saved state holds under `name`.

    Raises:
        CheckpointError: they are missing, or something else.
    """
    value = tensors.get(name)
    if value is None or value.dtype != torch.int64 or value.numel() != length or bool((value < 0).any()):
        raise CheckpointError(f"the saved state of a film is damaged: {name} is not what it should be.")
    return [int(number) for number in value.flatten()]


@dataclass
class ClipContext:
    """The clip inside the current forward pass."""

    num_frames: int = 1
    state: StreamState | None = None
    motion: Tensor | None = None
    levels: Tensor | None = None

    @contextmanager
    def clip(
        self,
        num_frames: int,
        state: StreamState | None = None,
        *,
        motion: Tensor | None = None,
        levels: Tensor | None = None,
    ) -> Iterator[None]:
        """Declare that batches [b*t c h w] hold `num_frames` = t frames, continuing `state` where given.

        The state is updated in place; without one, a pass is a film of its own. `motion` is what the text says of
        every frame, [b*t d], where layers listen to it; `levels` how noisy every frame is, [b t], in any measure.
        """
        before = (self.num_frames, self.state, self.motion, self.levels)
        self.num_frames, self.state, self.motion, self.levels = num_frames, state, motion, levels
        try:
            yield
            if state is not None:
                state.num_frames_seen += num_frames
        finally:
            self.num_frames, self.state, self.motion, self.levels = before

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` as it runs inside the current clip, for a call after the clip has been left.

        Only for clips without a `StreamState`: a second run would advance it twice.
        """
        assert self.state is None
        num_frames, motion, levels = self.num_frames, self.motion, self.levels

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.clip(num_frames, motion=motion, levels=levels):
                return function(*args, **kwargs)

        return run
