"""What temporal layers must know of the batch that passes through an image network: its frames and its past.

Image networks see [b*t c h w] and know nothing of t. The network that owns the injected layers holds one
`ClipContext`, which all its temporal layers share, and sets it around each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class StreamState:
    """What causal layers carry from one chunk of a film to the next: their last input frames, by layer.

    A fresh state stands at the start of a film. `tensors` are [b k c h w]; they are all that an exact
    resume needs.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    num_frames_seen: int = 0

    def detach(self) -> StreamState:
        return StreamState({k: v.detach() for k, v in self.tensors.items()}, self.num_frames_seen)


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
