"""What attacks are tried with: files that must stay as they are, calls with a watchdog, and how many to try."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import os
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latentvid.cli.main import main
from latentvid.core.errors import LatentVidError

LONGEST_S = 20
QUICK = 12
CODES = (0, 2, 3, 4, 5, 6)
"""What a call may end with, whatever it is given: never 1, an internal error."""
Case = TypeVar("Case")


@dataclass(frozen=True)
class Call:
    """How a call ended."""

    code: int
    out: str
    err: str
    seconds: float


def make_decoy(folder: Path) -> Path:
    """Make files like a user's beside what is attacked, and return their folder."""
    decoy = folder / "decoy"
    (decoy / "photos").mkdir(parents=True)
    (decoy / "photos" / "holiday.jpg").write_bytes(bytes(range(256)) * 8)
    (decoy / "notes.txt").write_text("mine\n", encoding="utf-8")
    (decoy / ".hidden").write_text("secret\n", encoding="utf-8")
    (decoy / "config.json").write_text('{"_class_name": "AutoencoderTiny"}', encoding="utf-8")
    return decoy


def snapshot(folder: Path) -> dict[str, Any]:
    """Return of all below a folder what it is: mode, time of the last change, and a hash or a link's target."""
    found: dict[str, Any] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        about = path.lstat()
        content = ""
        if stat.S_ISREG(about.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(about.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_mtime_ns, content)
    return found


def attempt(work: Callable[[], int]) -> Call:
    """Do something that returns an exit code, and stop it after `LONGEST_S`."""
    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    with (
        _watchdog() as late,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        code = work()
    assert not late, f"did not end within {LONGEST_S} s"
    return Call(code, out.getvalue(), err.getvalue(), time.monotonic() - start)


def command(*words: object) -> Call:
    """Run the command line."""
    return attempt(lambda: main([str(word) for word in words]))


def python(work: Callable[[], object]) -> Call:
    """Call the package from Python; the code is that of the failure that the command line would tell."""

    def run() -> int:
        try:
            work()
        except LatentVidError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
        return 0

    return attempt(run)


def is_orderly(call: Call) -> bool:
    """Whether a call ended as it may: a known code, one sentence of the failure, and no character that commands."""
    shown = (call.out + call.err).replace("\n", "")
    errors = [line for line in (call.out + call.err).splitlines() if line.startswith("error: ")]
    return call.code in CODES and len(errors) == (call.code != 0) and shown.isprintable()


def chosen(cases: Sequence[Case]) -> list[Case]:
    """Return the cases to try: some spread over all of them, or as many as LATENTVID_ATTACK says."""
    number = min(len(cases), int(os.environ.get("LATENTVID_ATTACK", QUICK)))
    return [cases[k * len(cases) // number] for k in range(number)]


@contextmanager
def _watchdog() -> Iterator[list[bool]]:
    """Raise in the block when it lasts too long, and end the process where it does not even hear that."""
    late: list[bool] = []

    def bark(*_: object) -> None:
        late.append(True)
        raise TimeoutError(f"longer than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(LONGEST_S)
    faulthandler.dump_traceback_later(3 * LONGEST_S, exit=True)
    try:
        yield late
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
