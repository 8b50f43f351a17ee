"""The outcome of an evaluation: per clip, mean, and against each other; as a table, as JSON, as pictures."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import latentvid
from latentvid.core.files import atomic_path, safe_name, write_json
from latentvid.core.text import shown
from latentvid.metrics.plot import Panel, Series, line_chart

FORMAT_VERSION = 1

COLUMNS = {
    "psnr": "{:.2f}",
    "psnr_pooled": "{:.2f}",
    "ssim": "{:.4f}",
    "lpips": "{:.4f}",
    "flicker": "{:.3f}",
    "flicker_static": "{:.3f}",
    "flicker_moving": "{:.3f}",
    "frechet": "{:.2f}",
    "chunk_error": "{:.1e}",
    "seconds_per_frame": "{:.4f}",
}
"""What the table shows, in this order, where it was measured; JSON holds everything."""

_AS_RATIO = ("flicker", "flicker_static", "flicker_moving", "seconds_per_frame")


@dataclass(frozen=True, slots=True)
class ClipResult:
    """One clip through one autoencoder."""

    clip: str
    autoencoder: str
    num_frames: int
    height: int
    width: int
    values: dict[str, float]
    curve: list[float]
    """PSNR (dB) of each frame."""


@dataclass(slots=True)
class Report:
    """Results of several autoencoders over the same clips; the first one is what the others are compared with."""

    autoencoders: list[str]
    protocol: dict[str, Any]
    results: list[ClipResult] = field(default_factory=list)
    over_set: dict[str, dict[str, float]] = field(default_factory=dict)
    """By autoencoder, what exists for the whole set only (Frechet distance)."""
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each clip's file."""
    failures: dict[str, str] = field(default_factory=dict)
    """Clips that could not be read, and why."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """Strips by clip: source, each reconstruction, each amplified difference."""

    def means(self) -> dict[str, dict[str, float]]:
        """Return by autoencoder the mean over clips of every value (over those clips that have it)."""
        means = {}
        for name in self.autoencoders:
            rows = [result.values for result in self.results if result.autoencoder == name]
            keys = dict.fromkeys(key for row in rows for key in row)
            means[name] = {key: _mean(row[key] for row in rows if key in row) for key in keys}
            means[name].update(self.over_set.get(name, {}))
        return means

    def curves(self) -> dict[str, list[float]]:
        """Return by autoencoder the PSNR by frame index, averaged over the clips that are long enough."""
        averaged = {}
        for name in self.autoencoders:
            curves = [result.curve for result in self.results if result.autoencoder == name]
            longest = max(map(len, curves), default=0)
            averaged[name] = [_mean(c[i] for c in curves if i < len(c)) for i in range(longest)]
        return averaged

    def comparisons(self) -> list[str]:
        """Return one line per further autoencoder: its means against the first one's."""
        means = self.means()
        if not self.autoencoders:
            return []
        first, *others = self.autoencoders
        return [f"{name} against {first}: {_against(means[name], means[first])}" for name in others]

    def table(self) -> str:
        """Return everything worth a glance as aligned Markdown: clips, means, comparisons, failures."""
        means = self.means()
        columns = [key for key in COLUMNS if any(key in row for row in means.values())]
        rows = [["clip", "frames", "size", "autoencoder", *columns]]
        for result in self.results:
            size = f"{result.width}x{result.height}"
            cells = _cells(result.values, columns)
            rows.append([shown(result.clip), str(result.num_frames), size, result.autoencoder, *cells])
        num_clips = len({result.clip for result in self.results})
        for name in self.autoencoders:
            rows.append([f"mean of {num_clips}", "", "", name, *_cells(means[name], columns)])
        parts = [markdown_table(rows, num_text_columns=4), *self.comparisons()]
        parts += [shown(f"{clip}: {why}") for clip, why in self.failures.items()]
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON-able data."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": "reconstruction",
            "autoencoders": self.autoencoders,
            "means": self.means(),
            "comparisons": self.comparisons(),
            "curves": self.curves(),
            "clips": [asdict(result) for result in self.results],
            "failures": self.failures,
            "protocol": self.protocol,
            "sources_sha256": self.sources,
            "versions": versions(),
        }

    def write_json(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write `to_dict` to a file."""
        write_json(path, self.to_dict(), overwrite=overwrite)

    def write(self, folder: str | Path, *, overwrite: bool = True) -> list[Path]:
        """Write report.json, report.md, curve.png and a strip per pictured clip; return their paths."""
        folder = Path(folder)
        written = [folder / "report.json", folder / "report.md"]
        self.write_json(written[0], overwrite=overwrite)
        with atomic_path(written[1], overwrite=overwrite) as beside:
            beside.write_text(self.table(), encoding="utf-8")
        pictures = {f"{safe_name(clip)}.png": picture for clip, picture in self.pictures.items()}
        if any(self.curves().values()):
            pictures["curve.png"] = self.curve_picture()
        for name, picture in pictures.items():
            with atomic_path(folder / name, overwrite=overwrite) as beside:
                picture.save(beside, format="PNG", optimize=True)
            written.append(folder / name)
        return written

    def curve_picture(self) -> Image.Image:
        """Return the chart of `curves`."""
        series = [Series(name, curve) for name, curve in self.curves().items()]
        return line_chart([Panel("PSNR (dB) by frame index, mean over clips", series)], panel_height=260)


def markdown_table(rows: Sequence[Sequence[str]], *, num_text_columns: int) -> str:
    """Return rows (the first one the heading) as Markdown whose columns line up; numbers to the right.

    >>> print(markdown_table([["a", "psnr"], ["sky", "9.1"]], num_text_columns=1))
    | a   | psnr |
    |-----|-----:|
    | sky |  9.1 |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i < num_text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(cells) + " |"

    rules = ("-" * (w + 2) if i < num_text_columns else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(rows[0]), "|" + "|".join(rules) + "|", *map(line, rows[1:])])


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"latentvid": latentvid.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("diffusers", "kornia", "lpips", "av"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _cells(values: dict[str, float], columns: Sequence[str]) -> list[str]:
    return [COLUMNS[key].format(values[key]) if key in values else "" for key in columns]


def _against(values: dict[str, float], first: dict[str, float]) -> str:
    parts = []
    for key, form in COLUMNS.items():
        if key not in values or key not in first or key == "chunk_error":
            continue
        if key not in _AS_RATIO:
            parts.append(f"{key} {form.replace(':', ':+').format(values[key] - first[key])}")
        elif first[key] > 0:
            parts.append(f"{key} {values[key] / first[key]:.2f}x")
    return ", ".join(parts)
