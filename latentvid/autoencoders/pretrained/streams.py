"""Running networks over films that arrive in parts: cutting films, convolutions across frames, delay lines.

A convolution that looks ahead puts its frames out later than it takes them in; what goes past it (residuals) waits as
long. So a network of such layers, centred ones too, computes every frame once and exactly, and holds a few frames per
layer, where a halo around each part would compute most frames several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NotYet(Exception):
    """A layer has taken in what it was given and needs more frames before it can put one out."""


@dataclass
class Stream:
    """Where a film stands in a network: the frames that its layers still need, by layer."""

    tensors: dict[Any, Tensor] = field(default_factory=dict)
    is_ending: bool = False
    """The film's last frames are inside the pass."""

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors.values())

    def put(self, key: Any, x: Tensor) -> None:
        """Let frames [b c t h w] wait under `key`."""
        held = self.tensors.get(key)
        self.tensors[key] = x if held is None else torch.cat([held, x], dim=2)

    def take(self, key: Any, num_frames: int) -> Tensor:
        """Return the oldest frames that wait under `key`."""
        waiting = self.tensors[key]
        # A copy, not a view: a view would keep the whole part alive.
        self.tensors[key] = waiting[:, :, num_frames:].clone()
        return waiting[:, :, :num_frames]


def convolve(x: Tensor, conv: nn.Conv3d, key: Any, stream: Stream, *, causal: bool, repeat_edges: bool) -> Tensor:
    """Convolve the next frames [b c t h w] of a film over time and space.

    Args:
        key: of this layer's past in the stream.
        causal: look back only; otherwise as far ahead as back.
        repeat_edges: before the first and after the last frame of a film lie copies of it; otherwise zeros.

    Raises:
        NotYet: no frame can be put out.
    """
    taps, step = conv.kernel_size[0], conv.stride[0]
    before, after = (taps - 1, 0) if causal else (taps // 2, taps // 2)
    past = stream.tensors.get(key)
    if past is None:
        past = _edge(x[:, :, :1], before, repeat_edges)
    parts = [past, x]
    if stream.is_ending:
        parts.append(_edge((x if x.shape[2] else past)[:, :, -1:], after, repeat_edges))
    film = torch.cat(parts, dim=2)
    num_frames = max(0, (film.shape[2] - taps) // step + 1)
    stream.tensors[key] = film[:, :, num_frames * step :].clone()
    if not num_frames:
        raise NotYet
    film = film[:, :, : (num_frames - 1) * step + taps]
    return F.conv3d(film, conv.weight, conv.bias, conv.stride, (0, *conv.padding[1:]), conv.dilation, conv.groups)


Layer = Callable[[Tensor, Stream], Tensor]
"""The next frames of a film [b c t h w] -> those that are ready; raises NotYet where none is."""


def run(layers: Sequence[Layer], x: Tensor, stream: Stream, most: int, *, is_last: bool) -> Iterator[Tensor]:
    """Send the next frames of a film through layers.

    At a film's end every layer gives out what it held back, so that later ones would get far more frames than came in;
    they get at most `most` at a time.
    """
    for index, layer in enumerate(layers):
        stream.is_ending = is_last
        try:
            x = layer(x, stream)
        except NotYet:
            return
        if x.shape[2] > most and index + 1 < len(layers):
            for part, is_last_part in marked(x.split(most, dim=2)):
                yield from run(layers[index + 1 :], part, stream, most, is_last=is_last and is_last_part)
            return
    yield x


def regroup(parts: Iterable[Tensor], first: int, then: int, *, dim: int) -> Iterator[tuple[Tensor, bool]]:
    """Cut a film anew: `first` items along `dim`, then `then` at a time; the last part may be shorter.

    Yields:
        Each part, and whether it is the last.
    """
    waiting: list[Tensor] = []
    size = first
    for part in parts:
        waiting.append(part)
        # More than `size`: what is cut off must not be the last.
        while sum(item.shape[dim] for item in waiting) > size:
            film = torch.cat(waiting, dim)
            yield film.narrow(dim, 0, size), False
            waiting = [film.narrow(dim, size, film.shape[dim] - size)]
            size = then
    if waiting:
        yield torch.cat(waiting, dim), True


def stretches(parts: Iterable[Tensor], length: int, reach: int) -> Iterator[tuple[Tensor, int, int]]:
    """Cut a film [b c t h w] into stretches of `length` frames, each with up to `reach` more on either side.

    Yields:
        Frames, how many of them come before the stretch, and its length, which is up to `reach` more at the film's end.
    """
    film: Tensor | None = None
    before = 0
    for part, is_last in regroup(parts, length + reach, length, dim=2):
        film = part if film is None else torch.cat([film, part], dim=2)
        end = film.shape[2] - (0 if is_last else reach)
        yield film, before, end - before
        film, before = film[:, :, max(0, end - reach) :], min(end, reach)


def marked(parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each part, and whether it is the last."""
    before: Tensor | None = None
    for part in parts:
        if before is not None:
            yield before, False
        before = part
    if before is not None:
        yield before, True


def repeat_last(x: Tensor, length: int, *, dim: int = 2) -> Tensor:
    """Grow `x` along `dim` to `length` by copies of its last item."""
    missing = length - x.shape[dim]
    if missing <= 0:
        return x
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat([x, last.expand(*(missing if k == dim else -1 for k in range(x.ndim)))], dim)


def _edge(frame: Tensor, length: int, repeat: bool) -> Tensor:
    edge = frame.expand(-1, -1, length, -1, -1)
    return edge if repeat else torch.zeros_like(edge)
