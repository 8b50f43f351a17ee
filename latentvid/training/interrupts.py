"""Ctrl-C (or a polite kill) that waits until a training step is whole, so that what is saved is a real state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold interrupts back inside the block and yield what tells whether there was one.

    Only signals that Python code handles already are held, and only in the main thread. A second one acts at once.
    """
    before: dict[int, Any] = {}
    asked = threading.Event()

    def hold(number: int, frame: Any) -> None:
        asked.set()
        _restore(before)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS if callable(signal.getsignal(number))}
        for number in before:
            signal.signal(number, hold)
    try:
        yield asked.is_set
    finally:
        _restore(before)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
