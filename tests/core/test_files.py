"""Files that are whole or absent, whoever is killed and whoever else writes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentvid.core.errors import UsageError
from latentvid.core.files import atomic_path

STUCK = """
import sys, time
from latentvid.core.files import atomic_path
with atomic_path(sys.argv[1]) as beside:
    beside.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(target: Path) -> None:
    with atomic_path(target) as beside:
        beside.write_bytes(b"new")
        raise KeyboardInterrupt


def test_a_failure_leaves_what_was(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert (names(tmp_path), target.read_bytes()) == (["a.bin"], b"old")
    with pytest.raises(UsageError, match="--overwrite"), atomic_path(target, overwrite=False):
        pass


def test_what_a_killed_writer_leaves_is_used_again(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 60 + ".bin")
    with subprocess.Popen([sys.executable, "-c", STUCK, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # While its writer lives, another one of the same target does not touch its file.
        with atomic_path(target) as beside:
            beside.write_bytes(b"mine")
        assert target.read_bytes() == b"mine"
        process.send_signal(signal.SIGKILL)
        process.wait()
    (leftover,) = set(names(tmp_path)) - {target.name}
    assert (tmp_path / leftover).read_bytes() == b"half"
    time.sleep(0.01)
    with atomic_path(target) as beside:
        assert beside.name == leftover
        assert beside.read_bytes() == b""
        beside.write_bytes(b"whole")
    assert (names(tmp_path), target.read_bytes()) == ([target.name], b"whole")


def test_a_writer_within_a_writer(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_path(target) as outer:
        outer.write_bytes(b"outer")
        with atomic_path(target) as inner:
            assert inner != outer
            inner.write_bytes(b"inner")
        assert target.read_bytes() == b"inner"
    assert (names(tmp_path), target.read_bytes()) == (["a.bin"], b"outer")
