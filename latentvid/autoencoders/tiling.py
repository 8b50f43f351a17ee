"""Pictures too large for the memory, as overlapping tiles whose results are faded into each other.

A tile sees nothing beyond its edges, so tiles give what the whole picture gives only as far as the network looks no
further than the margin that is thrown away. Group norms look at the whole picture, so tiles go through the network
twice: first to find statistics, whose mean over all tiles is then used for every one. Attention looks at a tile only.
So tiling is not exact and costs twice as much in networks with norms; it is used where a memory limit asks for it and
nowhere else, and `tests/autoencoders/test_tiling.py` measures what it changes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.protocol import Coder
from latentvid.core.errors import ResourceError
from latentvid.core.memory import format_bytes
from latentvid.temporal.context import StreamState

Span = tuple[int, int]
"""First and last + 1 of a row or column of latents."""
Tile = tuple[Span, Span]
"""Rows and columns."""
Result = TypeVar("Result")
MARGIN = 0.25
"""Part of an overlap, at each of its ends, in which the tile that ends there counts for nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a film goes through a network: so many frames at once, of tiles of so many latents."""

    frames: int
    tile: tuple[int, int]
    """Height and width of a tile."""
    size: tuple[int, int]
    """Height and width of the picture."""
    overlap: int

    @property
    def rows(self) -> list[Span]:
        return spans(self.size[0], self.tile[0], self.overlap)

    @property
    def columns(self) -> list[Span]:
        return spans(self.size[1], self.tile[1], self.overlap)

    @property
    def num_tiles(self) -> int:
        return len(self.rows) * len(self.columns)

    def tiles(self) -> Iterator[Tile]:
        return itertools.product(self.rows, self.columns)


def plan_passes(
    cost: Cost,
    size: tuple[int, int],
    factor: int,
    max_bytes: int | None,
    *,
    overlap: int,
    tile_cost: Callable[[], Cost] | None = None,
) -> Plan:
    """Return the fewest tiles with which a pass over a picture stays within `max_bytes`; without a limit, one.

    Args:
        cost: of the whole picture.
        size: of the picture, in latents.
        factor: pixels per side of a latent.
        overlap: latents that neighbouring tiles share; no tile is smaller than twice that.
        tile_cost: gives the cost of a tile, where it is another; asked only if the whole picture does not fit.

    Raises:
        ResourceError: not even one frame of the smallest tiles fits.
    """
    pixels = size[0] * size[1] * factor**2
    try:
        return Plan(cost.frames_per_pass(pixels, max_bytes), size, size, overlap)
    except ResourceError as error:
        assert max_bytes is not None
        why = error
    cost = tile_cost() if tile_cost else cost
    counts, least = [1, 1], math.inf
    while True:
        tile = [-(-(length + (n - 1) * overlap) // n) for length, n in zip(size, counts, strict=True)]
        # What every tile carries is held for all of them, and so is the picture that they are put together in.
        area = tile[0] * tile[1] * factor**2
        held = (cost.state_bytes * counts[0] * counts[1] + cost.pass_bytes) * area + cost.picture_bytes * pixels
        per_frame = cost.frame_bytes * area + cost.picture_bytes * pixels
        if counts != [1, 1]:
            least = min(least, held + per_frame)
            if least <= max_bytes:
                return Plan(int((max_bytes - held) // per_frame), (tile[0], tile[1]), size, overlap)
        longer = 0 if tile[0] >= tile[1] else 1
        if tile[longer] <= 2 * overlap:
            in_tiles = f" In tiles it needs about {format_bytes(int(least))}." if counts != [1, 1] else ""
            raise ResourceError(f"{why}{in_tiles}")
        counts[longer] += 1


class SharedNorms:
    """The statistics of a network's group norms, taken from passes over all tiles and used in others.

    What is held is one tile's, however many there are: a mean and a mean square per group, for every pass.
    """

    def __init__(self, network: nn.Module | None, num_tiles: int) -> None:
        modules = network.modules() if network else ()
        self._norms = [module for module in modules if isinstance(module, nn.GroupNorm)]
        self._num_tiles = num_tiles
        self._sums: dict[nn.GroupNorm, list[tuple[Tensor, Tensor]]] = {}
        self._passes: Counter[nn.GroupNorm] = Counter()

    def __bool__(self) -> bool:
        return bool(self._norms)

    def share(self, run: Callable[[], Result], probe: Callable[[], object] | None = None) -> Result:
        """Return what `run`, which sends all tiles through the network, gives with the statistics of all tiles.

        Args:
            run: calls `begin_tile` before each of them.
            probe: does the same and is called before, to find the statistics; `run` itself if not given.
        """
        if not self._norms:
            return run()
        try:
            with self._hooked(self._take):
                (probe or run)()
            with self._hooked(self._use):
                return run()
        finally:
            self._sums.clear()

    def begin_tile(self) -> None:
        """Hear that the passes to come, until the next call, are of another tile: as many, of the same frames."""
        self._passes.clear()

    @contextmanager
    def _hooked(self, hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]) -> Iterator[None]:
        hooks = [norm.register_forward_hook(hook) for norm in self._norms]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    def _take(self, norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(norm, nn.GroupNorm)
        values = _grouped(inputs[0], norm).float()
        found = values.mean(dim=-1, keepdim=True), values.square().mean(dim=-1, keepdim=True)
        sums, number = self._sums.setdefault(norm, []), self._next_pass(norm)
        if number == len(sums):
            sums.append(found)
        else:
            for total, value in zip(sums[number], found, strict=True):
                total += value

    def _use(self, norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(norm, nn.GroupNorm)
        x = inputs[0]
        mean, square = (total / self._num_tiles for total in self._sums[norm][self._next_pass(norm)])
        scale = ((square - mean.square()).clamp(min=0) + norm.eps).rsqrt()
        normed = ((_grouped(x, norm) - mean.to(x.dtype)) * scale.to(x.dtype)).view(x.shape)
        sides = (1, -1, *(1 for _ in x.shape[2:]))
        return normed * norm.weight.view(sides) + norm.bias.view(sides)

    def _next_pass(self, norm: nn.GroupNorm) -> int:
        self._passes[norm] += 1
        return self._passes[norm] - 1


def _grouped(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return x.reshape(len(x), norm.num_groups, -1)


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Cut a side into spans of one size, spread evenly, that overlap by at least `overlap`.

    >>> spans(10, 6, 2)
    [(0, 6), (4, 10)]
    """
    if size >= length:
        return [(0, length)]
    count = -(-(length - overlap) // (size - overlap))
    starts = [round(k * (length - size) / (count - 1)) for k in range(count)]
    return [(start, start + size) for start in starts]


def run_tiles(
    picture: Tensor,
    plan: Plan,
    run: Callable[[Tensor, int], Tensor],
    network: nn.Module | None,
    *,
    factor_in: int,
    factor_out: int,
) -> Tensor:
    """Send the tiles of [.. h w] through `run` and fade what comes back into one picture, float32 on the CPU.

    Args:
        run: gets a tile and its number; does so twice where norms are shared.
        network: that `run` uses, for group norms to share their statistics; None leaves every tile its own.
        factor_in: entries of `picture` per side of a latent.
        factor_out: the same of what `run` returns.
    """
    norms = SharedNorms(network, plan.num_tiles)

    def parts() -> Iterator[Tensor]:
        for number, tile in enumerate(plan.tiles()):
            norms.begin_tile()
            yield run(cut_tile(picture, tile, factor_in), number)

    return norms.share(lambda: fade(parts(), plan, factor_out))


class TiledCoder:
    """The tiles of a film, each coded as a film of its own, faded into whole pictures.

    They advance together, so that no more than a pass of each is held. Where norms are shared, every tile is two films:
    those that find statistics run one pass ahead of those that use them.

    Args:
        plan: the tiles; at most `plan.frames` frames are put together at a time.
        coder: makes the coder of a tile from its state.
        network: that coders use, for group norms to share their statistics; None leaves every tile its own.
        factor_in: entries of a part per side of a latent.
        factor_out: the same of what coders yield.
        states: gives the state that was saved under a name; all fresh at a film's start.
    """

    def __init__(
        self,
        plan: Plan,
        coder: Callable[[StreamState], Coder],
        network: nn.Module | None,
        *,
        factor_in: int,
        factor_out: int,
        states: Callable[[str], StreamState],
    ) -> None:
        self.plan, self._factor_in, self._factor_out = plan, factor_in, factor_out
        self._norms = SharedNorms(network, plan.num_tiles)
        names = [f"tile.{number}." for number in range(plan.num_tiles)]
        self._films = {name: coder(states(name)) for name in names}
        probes = [f"statistics.{name}" for name in names] if self._norms else []
        self._probes = {name: coder(states(name)) for name in probes}

    def push(self, part: Tensor) -> Iterator[Tensor]:
        """Take the next part of the film [1 c t h w] and yield the pictures that are ready, float32 on the CPU."""
        return self._together(lambda film, tile: film.push(cut_tile(part, tile, self._factor_in)))

    def finish(self) -> Iterator[Tensor]:
        """End the film and yield the pictures that were held back."""
        return self._together(lambda film, _: film.finish())

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the states of all tiles, to be saved."""
        found: dict[str, Tensor] = {}
        for name, film in (self._films | self._probes).items():
            found |= film.state.to_tensors(name)
        return found

    def _together(self, begin: Callable[[Coder, Tile], Iterator[Tensor]]) -> Iterator[Tensor]:
        def started(films: dict[str, Coder]) -> list[Iterator[Tensor]]:
            return [begin(film, tile) for film, tile in zip(films.values(), self.plan.tiles(), strict=False)]

        def advance(films: list[Iterator[Tensor]]) -> list[Tensor]:
            parts: list[Tensor] = []
            for film in films:
                self._norms.begin_tile()
                parts += islice(film, 1)
            return parts

        found, probes = started(self._films), started(self._probes)
        while parts := self._norms.share(partial(advance, found), partial(advance, probes)):
            for pieces in zip(*(part.split(self.plan.frames, dim=2) for part in parts), strict=True):
                yield fade(pieces, self.plan, self._factor_out)


def fade(parts: Iterable[Tensor], plan: Plan, factor: int) -> Tensor:
    """Fade parts [.. h w], one for every tile, into one picture, float32 on the CPU.

    Args:
        factor: entries of a part per side of a latent.
    """
    weights = [_weights(side, plan.overlap * factor, factor) for side in (plan.rows, plan.columns)]
    canvas: Tensor | None = None
    for tile, weight, part in zip(plan.tiles(), itertools.product(*weights), parts, strict=True):
        if canvas is None:
            canvas = torch.zeros(*part.shape[:-2], *(side * factor for side in plan.size))
        cut_tile(canvas, tile, factor).add_(part.float().cpu() * (weight[0][:, None] * weight[1]))
    assert canvas is not None
    return canvas


def cut_tile(picture: Tensor, tile: Tile, factor: int) -> Tensor:
    """Return a tile of a picture [.. h w] with `factor` entries per side of a latent, as a view."""
    return picture[..., _slice(tile[0], factor), _slice(tile[1], factor)]


def _slice(span: Span, factor: int) -> slice:
    return slice(span[0] * factor, span[1] * factor)


def _weights(side: list[Span], overlap: int, factor: int) -> list[Tensor]:
    """Return the weight of every entry of every span; at every place they add up to 1."""
    length = side[-1][1] * factor
    total, raw = torch.zeros(length), []
    margin = MARGIN * overlap
    for span in side:
        place = torch.arange(span[0] * factor, span[1] * factor) + 0.5
        before = place - span[0] * factor if span[0] else torch.full_like(place, overlap)
        after = span[1] * factor - place if span[1] * factor < length else torch.full_like(place, overlap)
        raw.append(((torch.minimum(before, after) - margin) / (overlap - 2 * margin)).clamp(0, 1))
        total[_slice(span, factor)] += raw[-1]
    return [weight / total[_slice(span, factor)] for weight, span in zip(raw, side, strict=True)]
