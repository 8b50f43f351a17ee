"""Pictures too large for the memory, as overlapping tiles whose results are faded into each other.

A tile sees nothing beyond its edges, so tiles give what the whole picture gives only as far as the network looks no
further than the margin that is thrown away. Group norms look at the whole picture, so tiles go through the network
twice: first to find statistics, whose mean over all tiles is then used for every one. Attention looks at a tile only.
So tiling is not exact and costs twice as much in networks with norms; it is used where a memory limit asks for it and
nowhere else, and `tests/autoencoders/test_tiling.py` measures what it changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentvid.autoencoders.budget import Cost
from latentvid.core.errors import ResourceError

Span = tuple[int, int]
"""First and last + 1 of a row or column of latents."""
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

    def tiles(self) -> Iterator[tuple[Span, Span]]:
        return itertools.product(self.rows, self.columns)


def plan_passes(cost: Cost, size: tuple[int, int], factor: int, max_bytes: int | None, *, overlap: int) -> Plan:
    """Return the fewest tiles with which a pass over a picture stays within `max_bytes`; without a limit, one.

    Args:
        size: of the picture, in latents.
        factor: pixels per side of a latent.
        overlap: latents that neighbouring tiles share; no tile is smaller than twice that.

    Raises:
        ResourceError: not even one frame of the smallest tiles fits.
    """
    pixels = size[0] * size[1] * factor**2
    try:
        return Plan(cost.frames_per_pass(pixels, max_bytes), size, size, overlap)
    except ResourceError as error:
        assert max_bytes is not None
        why = error
    counts = [1, 1]
    while True:
        tile = [-(-(length + (n - 1) * overlap) // n) for length, n in zip(size, counts, strict=True)]
        # What every tile carries is held for all of them, and so is the picture that they are put together in.
        area = tile[0] * tile[1] * factor**2
        held = cost.state_bytes * area * counts[0] * counts[1] + 2 * 3 * 4 * pixels
        frames = int((max_bytes - held) // (cost.frame_bytes * area + 2 * 3 * 4 * pixels))
        if frames >= 1 and counts != [1, 1]:
            return Plan(frames, (tile[0], tile[1]), size, overlap)
        longer = 0 if tile[0] >= tile[1] else 1
        if tile[longer] <= 2 * overlap:
            raise ResourceError(f"{why} Tiles of {2 * overlap * factor} pixels do not fit either.")
        counts[longer] += 1


class SharedNorms:
    """The statistics of a network's group norms, taken from passes over all tiles and used in others."""

    def __init__(self, network: nn.Module) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        self._sums: dict[nn.GroupNorm, tuple[Tensor, Tensor, int]] = {}

    def share(self, run: Callable[[], Tensor]) -> Tensor:
        """Return what `run`, which sends all tiles through the network, gives with the statistics of all tiles."""
        if not self._norms:
            return run()
        with self.taken():
            run()
        with self.used():
            return run()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the statistics of a pass inside, a pass per tile."""

        def note(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            assert isinstance(norm, nn.GroupNorm)
            values = _grouped(inputs[0], norm).float()
            mean, square, count = self._sums.get(norm, (torch.zeros(()), torch.zeros(()), 0))
            mean, square = mean.to(values.device), square.to(values.device)
            found = values.mean(dim=-1, keepdim=True), values.square().mean(dim=-1, keepdim=True)
            self._sums[norm] = mean + found[0], square + found[1], count + 1

        hooks = [norm.register_forward_hook(note) for norm in self._norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use them in the pass inside, which has as many frames."""

        def apply(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            assert isinstance(norm, nn.GroupNorm)
            x = inputs[0]
            mean, square, count = self._sums[norm]
            mean, square = mean / count, square / count
            scale = ((square - mean.square()).clamp(min=0) + norm.eps).rsqrt()
            normed = ((_grouped(x, norm) - mean.to(x.dtype)) * scale.to(x.dtype)).view(x.shape)
            sides = (1, -1, *(1 for _ in x.shape[2:]))
            return normed * norm.weight.view(sides) + norm.bias.view(sides)

        hooks = [norm.register_forward_hook(apply) for norm in self._norms if norm in self._sums]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


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
    picture: Tensor, plan: Plan, run: Callable[[Tensor, int], Tensor], *, factor_in: int, factor_out: int
) -> Tensor:
    """Send the tiles of [.. h w] through `run` and fade what comes back into one picture, float32 on the CPU.

    Args:
        run: gets a tile and its number.
        factor_in: entries of `picture` per side of a latent.
        factor_out: the same of what `run` returns.
    """
    weights = [_weights(side, plan.overlap * factor_out, factor_out) for side in (plan.rows, plan.columns)]
    canvas: Tensor | None = None
    for number, ((i, row), (j, column)) in enumerate(itertools.product(enumerate(plan.rows), enumerate(plan.columns))):
        part = run(picture[..., _slice(row, factor_in), _slice(column, factor_in)], number).float().cpu()
        part *= weights[0][i][:, None] * weights[1][j]
        if canvas is None:
            canvas = torch.zeros(*part.shape[:-2], *(side * factor_out for side in plan.size))
        canvas[..., _slice(row, factor_out), _slice(column, factor_out)] += part
    assert canvas is not None
    return canvas


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
