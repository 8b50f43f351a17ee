"""Line charts as pictures, drawn with Pillow alone: stacked panels over one x axis, readable without a zoom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f6fb4", "#d9541e", "#2c8c4b", "#8a4fb0", "#b8860b", "#12808f")
INK, MUTED, GRID, MARK = "#222222", "#666666", "#e4e4e4", "#b04050"

_SCALE = 2
"""Drawn this many times larger and reduced: Pillow's own lines are not smooth."""
_LEFT, _RIGHT, _TITLE, _GAP, _BOTTOM = 74, 22, 26, 16, 44


@dataclass(frozen=True, slots=True)
class Series:
    """One line: values[i] at x = start + i."""

    label: str
    values: Sequence[float]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines that share a y axis."""

    title: str
    series: Sequence[Series]
    marks: Sequence[int] = field(default=())
    """x positions of dashed vertical lines (joins)."""


def line_chart(
    panels: Sequence[Panel], *, title: str = "", x_label: str = "frame", width: int = 960, panel_height: int = 150
) -> Image.Image:
    """Return the panels, one under the other, as an RGB picture `width` pixels wide.

    A line with more points than pixels is drawn as its mean per pixel column over a pale band from least to greatest.
    """
    top = 40 if title else 12
    height = top + len(panels) * (panel_height + _TITLE + _GAP) + _BOTTOM - _GAP
    canvas = _Canvas(width, height)
    if title:
        canvas.text((_LEFT, 12), title, size=17, fill=INK)
    x_range = _x_range(panels)
    for i, panel in enumerate(panels):
        upper = top + i * (panel_height + _TITLE + _GAP) + _TITLE
        _Axes(canvas, (_LEFT, upper, width - _RIGHT, upper + panel_height), x_range, panel).draw(
            x_ticks=i == len(panels) - 1
        )
    canvas.text(((_LEFT + width - _RIGHT) / 2, height - 10), x_label, size=13, fill=MUTED, anchor="ms")
    return canvas.picture()


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within [low, high].

    >>> nice_ticks(0, 97, 5)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    rough = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class _Canvas:
    """A picture drawn in output pixels and kept at `_SCALE` times that."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, at: tuple[float, float], text: str, *, size: int, fill: str, anchor: str = "la") -> None:
        self._draw.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=fill, font=_font(size), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], *, fill: str, width: float = 1) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=round(width * _SCALE), joint="curve")

    def dashed(self, x: float, top: float, bottom: float, *, fill: str) -> None:
        y = top
        while y < bottom:
            self.line([(x, y), (x, min(y + 4, bottom))], fill=fill)
            y += 8

    def polygon(self, points: Sequence[tuple[float, float]], *, fill: str) -> None:
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill=fill)

    def dot(self, at: tuple[float, float], *, fill: str, radius: float = 3) -> None:
        x, y, r = at[0] * _SCALE, at[1] * _SCALE, radius * _SCALE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def text_width(self, text: str, size: int) -> float:
        return self._draw.textlength(text, font=_font(size)) / _SCALE

    def picture(self) -> Image.Image:
        return self._image.resize(self.size, Image.Resampling.LANCZOS)


class _Axes:
    """One panel: where its box is and how values become pixels."""

    def __init__(
        self, canvas: _Canvas, box: tuple[float, float, float, float], x_range: tuple[float, float], panel: Panel
    ) -> None:
        self.canvas, self.box, self.x_range, self.panel = canvas, box, x_range, panel
        self.y_range = _y_range(panel)

    def draw(self, *, x_ticks: bool) -> None:
        left, top, right, bottom = self.box
        self._grid(x_ticks)
        self._marks()
        for series, colour in self._coloured():
            self._line(series, colour)
        self.canvas.line([(left, top), (left, bottom), (right, bottom)], fill=MUTED)
        self._heading()

    def _grid(self, x_ticks: bool) -> None:
        left, top, right, bottom = self.box
        for tick in nice_ticks(*self.y_range, 4):
            y = self._y(tick)
            self.canvas.line([(left, y), (right, y)], fill=GRID)
            self.canvas.text((left - 8, y), _label(tick), size=12, fill=MUTED, anchor="rm")
        for tick in nice_ticks(*self.x_range, 10):
            if tick != round(tick):
                continue
            x = self._x(tick)
            self.canvas.line([(x, top), (x, bottom)], fill=GRID)
            if x_ticks:
                self.canvas.text((x, bottom + 6), _label(tick), size=12, fill=MUTED, anchor="ma")

    def _marks(self) -> None:
        """Draw the marks as dashed lines, or as short ones along the top where they would hide the curve."""
        left, top, right, bottom = self.box
        inside = [mark for mark in self.panel.marks if self.x_range[0] <= mark <= self.x_range[1]]
        is_crowded = len(inside) * 12 > right - left
        for mark in inside:
            self.canvas.dashed(self._x(mark), top, top + 4 if is_crowded else bottom, fill=MARK)

    def _line(self, series: Series, colour: str) -> None:
        finite = [(float(series.start + i), v) for i, v in enumerate(series.values) if math.isfinite(v)]
        columns = round(self.box[2] - self.box[0])
        if len(finite) > 2 * columns:
            finite = self._condense(finite, columns, colour)
        points = [(self._x(x), self._y(y)) for x, y in finite]
        if len(points) == 1:
            self.canvas.dot(points[0], fill=colour)
        elif points:
            self.canvas.line(points, fill=colour, width=1.6)

    def _condense(self, points: list[tuple[float, float]], columns: int, colour: str) -> list[tuple[float, float]]:
        """Draw the band of the points and return their means, one per pixel column."""
        size = math.ceil(len(points) / columns)
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        xs = [sum(x for x, _ in group) / len(group) for group in groups]
        ys = [[y for _, y in group] for group in groups]
        upper = [(self._x(x), self._y(max(y))) for x, y in zip(xs, ys, strict=True)]
        lower = [(self._x(x), self._y(min(y))) for x, y in zip(xs, ys, strict=True)]
        self.canvas.polygon(upper + lower[::-1], fill=_pale(colour))
        return [(x, sum(y) / len(y)) for x, y in zip(xs, ys, strict=True)]

    def _heading(self) -> None:
        left, top, right, _ = self.box
        self.canvas.text((left, top - 7), self.panel.title, size=14, fill=INK, anchor="ls")
        if len(self.panel.series) < 2:
            return
        x = right
        for series, colour in reversed(self._coloured()):
            x -= self.canvas.text_width(series.label, 12)
            self.canvas.text((x, top - 7), series.label, size=12, fill=INK, anchor="ls")
            self.canvas.line([(x - 24, top - 11), (x - 6, top - 11)], fill=colour, width=2.5)
            x -= 40

    def _coloured(self) -> list[tuple[Series, str]]:
        return [(series, COLOURS[i % len(COLOURS)]) for i, series in enumerate(self.panel.series)]

    def _x(self, value: float) -> float:
        low, high = self.x_range
        return self.box[0] + (value - low) / (high - low) * (self.box[2] - self.box[0])

    def _y(self, value: float) -> float:
        low, high = self.y_range
        return self.box[3] - (value - low) / (high - low) * (self.box[3] - self.box[1])


def _x_range(panels: Sequence[Panel]) -> tuple[float, float]:
    spans = [(s.start, s.start + len(s.values) - 1) for panel in panels for s in panel.series if len(s.values)]
    low = min((start for start, _ in spans), default=0)
    high = max((end for _, end in spans), default=1)
    return low, max(high, low + 1)


def _y_range(panel: Panel) -> tuple[float, float]:
    values = [v for series in panel.series for v in series.values if math.isfinite(v)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    # A flat line stays flat: without a floor the axis would blow rounding up to a mountain range.
    margin = max(0.08 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-6)
    return low - margin, high + margin


def _label(value: float) -> str:
    return f"{value:.6g}"


def _pale(colour: str) -> str:
    return "#" + "".join(f"{255 - (255 - int(colour[i : i + 2], 16)) // 4:02x}" for i in (1, 3, 5))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)
