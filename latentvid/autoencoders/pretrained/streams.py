"""Running networks over films that arrive in parts: cutting films, convolutions across frames, delay lines.

A convolution that looks ahead puts its frames out later than it takes them in; what goes past it (residuals) waits as
long. So a network of such layers, centred ones too, computes every frame once and exactly, and holds a few frames per
layer, where a halo around each part would compute most frames several times.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentvid.autoencoders.protocol import Coder, PerPass
from latentvid.temporal.context import StreamState

WAITING = "waiting"
"""Name in a state of what came in and was not passed through the network yet."""


class NotYet(Exception):
    """A layer has taken in what it was given and needs more frames before it can put one out."""


def convolve(x: Tensor, conv: nn.Conv3d, name: str, stream: StreamState, *, causal: bool, repeat_edges: bool) -> Tensor:
    """Convolve the next frames [b c t h w] of a film over time and space.

    Args:
        name: of this layer's past in the stream.
        causal: look back only; otherwise as far ahead as back.
        repeat_edges: before the first and after the last frame of a film lie copies of it; otherwise zeros.

    Raises:
        NotYet: no frame can be put out.
    """
    taps, step = conv.kernel_size[0], conv.stride[0]
    before, after = (taps - 1, 0) if causal else (taps // 2, taps // 2)
    past = stream.tensors.get(name)
    if past is None:
        past = _edge(x[:, :, :1], before, repeat_edges)
    parts = [past, x]
    if stream.is_ending:
        parts.append(_edge((x if x.shape[2] else past)[:, :, -1:], after, repeat_edges))
    film = torch.cat(parts, dim=2)
    num_frames = max(0, (film.shape[2] - taps) // step + 1)
    stream.tensors[name] = film[:, :, num_frames * step :].clone()
    if not num_frames:
        raise NotYet
    film = film[:, :, : (num_frames - 1) * step + taps]
    return F.conv3d(film, conv.weight, conv.bias, conv.stride, (0, *conv.padding[1:]), conv.dilation, conv.groups)


Layer = Callable[[Tensor, StreamState], Tensor]
"""The next frames of a film [b c t h w] -> those that are ready; raises NotYet where none is."""
Names = dict[nn.Module, str]
"""What the layers of a network are called in a state: as in its state dict."""


def names_of(network: nn.Module) -> Names:
    return {module: name for name, module in network.named_modules()}


def run(layers: Sequence[Layer], x: Tensor, stream: StreamState, most: int, *, is_last: bool) -> Iterator[Tensor]:
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


class GroupCoder(Coder):
    """Cuts a film into groups, however it arrives: `first` items, then `then` at a time, fewer at the end."""

    first: int
    then: int
    holds_last: bool = False
    """A group waits until more has come after it, since the last one is coded in another way."""

    def push(self, part: Tensor) -> Iterator[Tensor]:
        waiting = self.state.tensors.pop(WAITING, None)
        film = part if waiting is None else torch.cat([waiting, part], dim=2)
        start = 0
        while film.shape[2] - start >= self._size + self.holds_last:
            size = self._size
            yield from self.code(film.narrow(2, start, size), is_last=False)
            self.state.num_frames_seen += size
            start += size
        if start < film.shape[2]:
            self.state.tensors[WAITING] = film[:, :, start:].clone()

    def finish(self) -> Iterator[Tensor]:
        rest = self.state.tensors.pop(WAITING, None)
        if rest is not None:
            yield from self.code(rest, is_last=True)
            self.state.num_frames_seen += rest.shape[2]

    @property
    def is_first(self) -> bool:
        """Whether the group that is coded is the film's first."""
        return self.state.num_frames_seen == 0

    @property
    def _size(self) -> int:
        return self.first if self.is_first else self.then

    @abstractmethod
    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        """Send a group [1 c t h w] through the network.

        Args:
            is_last: the film ends with it. (A whole group at the film's end is not marked unless `holds_last`.)
        """


class LayerCoder(Coder):
    """Sends a film through layers over streams; the newest part waits, since layers must know which is the last."""

    def __init__(self, autoencoder: Any, state: StreamState, per_pass: PerPass) -> None:
        super().__init__(autoencoder, state, per_pass)
        self._layers = self.layers()

    @abstractmethod
    def layers(self) -> list[Layer]:
        """Return the network's layers."""

    def push(self, part: Tensor) -> Iterator[Tensor]:
        most = self._most(part)
        for piece in part.split(max(1, most // self.autoencoder.grid.step), dim=2):
            yield from self._pass(most, is_last=False)
            self.state.tensors[WAITING] = piece.clone()

    def finish(self) -> Iterator[Tensor]:
        if WAITING in self.state.tensors:
            yield from self._pass(self._most(self.state.tensors[WAITING]), is_last=True)

    def _most(self, latents: Tensor) -> int:
        return self.frames_per_pass(*(side * self.autoencoder.spatial_factor for side in latents.shape[-2:]))

    def _pass(self, most: int, *, is_last: bool) -> Iterator[Tensor]:
        waiting = self.state.tensors.pop(WAITING, None)
        if waiting is not None:
            yield from run(self._layers, waiting, self.state, most, is_last=is_last)
            self.state.num_frames_seen += waiting.shape[2]


class StretchCoder(GroupCoder):
    """Codes a film anew in stretches of `then` items, each with `reach` more on either side, fewer at the film's ends.

    `first` is `then + reach`, and `then` no less than `reach`.
    """

    reach: int
    holds_last = True

    def code(self, group: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        before = self.state.tensors.pop("film", None)
        film = group if before is None else torch.cat([before, group], dim=2)
        end = film.shape[2] - (0 if is_last else self.reach)
        if not is_last:
            self.state.tensors["film"] = film[:, :, end - self.reach :].clone()
        first = 0 if before is None else self.reach
        yield self.stretch(film)[:, :, first:end].clone()

    @abstractmethod
    def stretch(self, film: Tensor) -> Tensor:
        """Code items [1 c t h w] as a film of their own; as many come back."""


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
