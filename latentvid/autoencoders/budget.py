"""How many frames go through a network at once, so that a working set stays within the memory it was given.

The model is a plain one: what a pass holds is a small multiple of the largest tensor that any layer of the network puts
out, per frame; temporal layers take something for the pass as a whole besides, and keep two frames of each of their
inputs from one pass to the next. The multiples are estimates; `scripts/bench_decode_memory.py` measures the real peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentvid.core.errors import ResourceError
from latentvid.core.memory import format_bytes
from latentvid.temporal.convolution import KERNEL, TemporalConvolution

DEFAULT_BYTES = 512 * 10**6
"""Working set to aim for where nobody says how large it may be; one frame is always taken then."""
MOST_FRAMES = 64
"""More at once is no faster."""
LIVE_TENSORS = 6.0
"""Tensors of the largest size that an image network holds for every frame at its peak: input, residual, activation,
output."""
LIVE_TENSORS_TEMPORAL = 8.0
"""The same inside a temporal layer, with what the heap keeps in pieces: peaks of one pass differ by a quarter."""
PASS_TENSORS_TEMPORAL = 8.0
"""Of the size of one frame there, for a pass of any length: what is padded with the past, and what kernels use. Fitted
to the largest peaks of passes of 1 to 8 frames (TAESD at 256x256, Stable Diffusion's decoder at 192x192)."""
PICTURE_BYTES = 2 * 3 * 4
"""Of a frame in float32, and of what it becomes next."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network pass needs besides the weights, per pixel of the clip."""

    frame_bytes: float
    """For every frame in the pass."""
    state_bytes: float
    """For what temporal layers carry, however many frames there are."""
    picture_bytes: float = PICTURE_BYTES
    """For the frame that tiles are put together in, and as much for every other in the pass."""
    pass_bytes: float = 0.0
    """For a pass, however many frames are in it; nothing between passes."""

    def pass_peak(self, num_pixels: int, frames: int) -> float:
        """Return what a pass of `frames` frames of `num_pixels` takes, with what is carried."""
        return (self.state_bytes + self.pass_bytes + self.frame_bytes * frames) * num_pixels

    def frames_per_pass(self, num_pixels: int, max_bytes: int | None) -> int:
        """Return how many frames of `num_pixels` (height x width, times the batch) fit into `max_bytes`.

        Raises:
            ResourceError: a limit is given, and not even one frame fits.
        """
        frame, fixed = self.frame_bytes * num_pixels, self.pass_peak(num_pixels, 0)
        if max_bytes is None:
            return max(1, min(int((DEFAULT_BYTES - fixed) // frame), MOST_FRAMES))
        frames = int((max_bytes - fixed) // frame)
        if frames < 1:
            raise ResourceError(
                f"one frame of {num_pixels} pixels needs about {format_bytes(frame + fixed)} in the autoencoder, and "
                f"{format_bytes(max(0, max_bytes))} are given to it; raise --max-memory or use a smaller size."
            )
        return min(frames, MOST_FRAMES)


def working_bytes(max_memory: int, device: torch.device) -> int:
    """Return what passes may take so that the process stays below `max_memory` bytes in all.

    A fifth of what is left goes to reader, writer and fragmentation.
    """
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return int(0.8 * (max_memory - held))


def measure(network: nn.Module, run: Callable[[], Tensor], num_pixels: int) -> Cost:
    """Return the cost of `run`, which sends one small frame of `num_pixels` through `network`."""
    largest = {False: 0, True: 0}
    carried = 0
    width = 4

    def note(module: nn.Module, _: object, output: object) -> None:
        nonlocal carried, width
        if not isinstance(output, Tensor):
            return
        is_temporal = isinstance(module, TemporalConvolution)
        width = output.element_size()
        largest[is_temporal] = max(largest[is_temporal], output.numel())
        if is_temporal:
            carried += (KERNEL - 1) * len(module.convs) * output.numel()  # type: ignore[arg-type]

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, TemporalConvolution) or not list(module.children())
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    frame = width * max(LIVE_TENSORS * largest[False], LIVE_TENSORS_TEMPORAL * largest[True])
    whole_pass = width * PASS_TENSORS_TEMPORAL * largest[True]
    return Cost(frame / num_pixels, width * carried / num_pixels, pass_bytes=whole_pass / num_pixels)


def live_bytes(passes: Iterable[Tensor]) -> tuple[int, int]:
    """Return the most bytes of tensors that passes made and held at one time, and the most between two of them.

    What kernels use inside is not seen.
    """
    with torch.no_grad(), _Live() as live:
        between = max(live.now() for _ in passes)
    return live.peak, between


class _Live(TorchDispatchMode):
    """Watches what operations put out, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._at_most = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._held:  # a reference keeps the place of what is gone from being reused
                    self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self._at_most += storage.nbytes()
        if self._at_most > self.peak:  # seldom: looking through all that is held at every operation takes minutes
            self.peak = max(self.peak, self.now())
        return found

    def now(self) -> int:
        self._held = {key: item for key, item in self._held.items() if not item[0].expired()}
        self._at_most = sum(size for _, size in self._held.values())
        return self._at_most
