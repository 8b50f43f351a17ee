"""Prompts along a film: which words each frame range shows, and how one scene becomes the next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import PrivateAttr, field_validator

from latentvid.core.config import StrictModel, load_config
from latentvid.extension.plan import Window

Transition = Literal["fade", "cut"]
_RANGE = re.compile(r"(\d+)(?:-(\d*))?")


class PromptSchedule(StrictModel):
    """Frame ranges and their prompts, as `--prompts FILE` gives them.

    A window takes the prompt that holds at its first new frame. Where that changes, "fade" leads from the old
    words to the new ones over the frames of that one window; "cut" takes the new ones at once.

    >>> schedule = PromptSchedule(prompts={"0-63": "calm", "64-": "storm"})
    >>> schedule.at(10), schedule.at(64)
    ('calm', 'storm')
    """

    prompts: dict[str, str]
    """"0-63", "64-" (to the end) or "64" (the same) -> prompt; in order, from frame 0 on."""
    transition: Transition = "fade"
    _file: Path | None = PrivateAttr(None)

    @field_validator("prompts")
    @classmethod
    def _in_order(cls, prompts: dict[str, str]) -> dict[str, str]:
        if not prompts:
            raise ValueError("at least one frame range is needed")
        end: int | None = -1
        last = -1
        for words in prompts:
            start, stop = _bounds(words)
            if start <= last or (end is not None and start != end + 1):
                expected = f"at frame {end + 1}" if end is not None else f"after frame {last}"
                raise ValueError(f"range {words!r} should begin {expected}")
            last, end = start, stop
        return prompts

    def at(self, frame: int) -> str:
        """Return the prompt of a frame; the last one holds beyond its range."""
        prompt = ""
        for words, text in self.prompts.items():
            if _bounds(words)[0] <= frame:
                prompt = text
        return prompt

    def named(self) -> list[tuple[str, str]]:
        """Return each prompt behind a name for it: its frames and, where they came from a file, its line there."""
        return [(f"prompt of frames {words}{self._place(words)}", text) for words, text in self.prompts.items()]

    def _place(self, words: str) -> str:
        if self._file is None:
            return ""
        pattern = re.compile(rf"[\s{{,]*(['\"]?){re.escape(words)}\1\s*:")
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []
        number = next((k for k, line in enumerate(lines, 1) if pattern.match(line)), None)
        return f" ({self._file}{'' if number is None else f', line {number}'})"

    def around(self, window: Window, *, before: Window | None = None, given: int = 0) -> tuple[str, str]:
        """Return the prompts that a window comes from and goes to; equal where nothing changes.

        Args:
            before: the window in front of it.
            given: frames that exist before the film's first; ranges do not count them.
        """
        here = self.at(window.new_from - given)
        if before is None or self.transition == "cut":
            return here, here
        return self.at(before.new_from - given), here


def read_prompts(path: str | Path) -> PromptSchedule:
    """Read `--prompts FILE`.

    Raises:
        UsageError: it cannot be read, or its ranges do not follow each other.
    """
    schedule = load_config(path, PromptSchedule)
    schedule._file = Path(path)
    return schedule


def _bounds(words: str) -> tuple[int, int | None]:
    """Return first and last frame of a range; None for an open end."""
    match = _RANGE.fullmatch(words.strip())
    if match is None:
        raise ValueError(f"{words!r} is no frame range; write 0-63, 64- or 64")
    start, stop = int(match[1]), int(match[2]) if match[2] else None
    if stop is not None and stop < start:
        raise ValueError(f"range {words!r} ends before it begins")
    return start, stop
