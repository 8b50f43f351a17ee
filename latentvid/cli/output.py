"""What a verb tells its user: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from latentvid.core.text import printable, shown


def say(text: str, stream: TextIO) -> None:
    """Print a line, with escapes for what the stream's encoding lacks."""
    print(printable(text, stream.encoding), file=stream, flush=True)


def _json(facts: Any) -> str:
    """Return JSON that keeps to ASCII where there is more in it than visible characters."""
    text = json.dumps(facts, ensure_ascii=False)
    return text if text.isprintable() and _fits(text) else json.dumps(facts)


def _fits(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Advance(Protocol):
    """Tells a progress bar of steps done, and what else to show of them."""

    def __call__(self, step: int, note: str = "") -> None: ...


class Output:
    """One verb's voice, as its --json and --quiet ask for."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """Print the one result: `facts` as a JSON object, or else `text`, of one or more lines, for reading."""
        say(_json(facts) if self.as_json else shown(text, lines=True), sys.stdout)

    def note(self, text: str) -> None:
        """Say something about how it goes."""
        if not self.quiet:
            say(shown(text), sys.stderr)

    def warn(self, text: str) -> None:
        """Say what the user should know even when quiet."""
        say(f"warning: {shown(text)}", sys.stderr)

    @contextmanager
    def progress(self, label: str, total: int | None = None, unit: str = "frames") -> Iterator[Advance]:
        """Show how far a loop is: a bar on a terminal, else a line now and then. Call the value with each step done."""
        if self.quiet:
            yield lambda step, note="": None
        elif sys.stderr.isatty():
            with _bar(label, total, unit) as advance:
                yield advance
        else:
            lines = _Lines(label, total, unit, self.note)
            yield lines.advance
            lines.end()


class _Lines:
    """Progress for log files: at most a line per tenth of the way, and at most one per `PAUSE_S`."""

    PAUSE_S = 5.0

    def __init__(self, label: str, total: int | None, unit: str, say: Callable[[str], None]) -> None:
        self.label, self.total, self.unit, self.say = label, total, unit, say
        self.done = self.shown = 0
        self.note = ""
        self.start = self.last = time.monotonic()

    def advance(self, step: int, note: str = "") -> None:
        self.done += step
        self.note = note
        now = time.monotonic()
        far_enough = not self.total or (self.done - self.shown) * 10 >= self.total
        if now - self.last >= self.PAUSE_S and far_enough:
            self.last, self.shown = now, self.done
            self._show(now)

    def end(self) -> None:
        self._show(time.monotonic())

    def _show(self, now: float) -> None:
        of = f"/{self.total}" if self.total else ""
        self.say(f"{self.label}: {self.done}{of} {self.unit}, {now - self.start:.1f} s{self.note and f'; {self.note}'}")


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(shown(label), total=total)

        def advance(step: int, note: str = "") -> None:
            bar.update(task, advance=step, description=shown(f"{label}; {note}" if note else label))

        yield advance


def table(facts: Mapping[str, Any], indent: int = 0) -> str:
    """Return facts as lines of "name: value", nested ones indented; those without a value are left out."""
    told = {shown(key): value for key, value in facts.items() if value not in (None, [], {}, "")}
    width = max((len(key) for key in told), default=0)
    lines = []
    for key, value in told.items():
        name = f"{' ' * indent}{key.replace('_', ' ')}:"
        if isinstance(value, Mapping):
            lines += [name, table(value, indent + 2)]
        else:
            lines.append(f"{name:<{indent + width + 2}} {_value(value)}")
    return "\n".join(lines)


def columns(rows: list[list[str]]) -> str:
    """Return rows of cells, the first being the heads, as aligned columns."""
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(_value(item) for item in value[:8])
        return f"{text}, ... ({len(value)})" if len(value) > 8 else text
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 100_000 else shown(value)
