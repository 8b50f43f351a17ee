"""A run's log: one JSON line per so many steps, of the means since the last one, and one per validation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from latentvid.core.files import atomic_path
from latentvid.core.folder import Folder

LOG = "log.jsonl"
OnRecord = Callable[[dict[str, Any]], None]


class RunLog:
    """Sums what happens in each step and appends records to a file.

    Args:
        folder: where it goes, as `LOG`; None writes nothing (one process of several does the writing).
        on_record: called with every record.
    """

    def __init__(self, folder: Folder | None, on_record: OnRecord | None = None) -> None:
        self.folder, self.on_record = folder, on_record
        self._sums: dict[str, tuple[float, int]] = {}

    def note(self, name: str, value: float) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + value, count + 1)

    def take_means(self) -> dict[str, float]:
        """Return the mean of everything noted since the last call."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def record(self, record: dict[str, Any]) -> None:
        if self.folder is None:
            return
        self.folder.append(LOG, (json.dumps(record) + "\n").encode())
        if self.on_record:
            self.on_record(record)

    def cut(self, step: int) -> None:
        """Drop what a killed run logged after its last saved state, at `step`; it will be logged again."""
        if self.folder is None or not self.folder.has(LOG):
            return
        path = self.folder.file(LOG)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        if kept == lines:
            return
        with atomic_path(path) as beside:
            beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def state(self) -> dict[str, list[float]]:
        """Return the sums of the record that is not full yet, as plain data."""
        return {name: [total, count] for name, (total, count) in self._sums.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        self._sums = {name: (float(total), int(count)) for name, (total, count) in state.items()}


def _step(line: str) -> float:
    """Return the step of a record; beyond all steps for a line that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
