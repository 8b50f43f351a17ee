"""Files that are whole or absent, whoever is killed and whoever else writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentvid.core.errors import UsageError
from latentvid.core.files import atomic_path, read_json, write_json

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


def test_names_that_are_no_text_pass_through_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin_\xe9 \xc3\xa9.png")
    write_json(tmp_path / "a.json", {"clip": name})
    assert read_json(tmp_path / "a.json") == {"clip": name}


def test_temporary_names_fit_where_the_name_itself_does(tmp_path: Path) -> None:
    for name in ("日" * 80 + ".json", "a" * 250 + ".json", os.fsdecode(b"\xe9" * 250) + ".json"):
        write_json(tmp_path / name, 1)
        with atomic_path(tmp_path / name) as one, atomic_path(tmp_path / name) as other:
            assert one != other
            for beside in (one, other):
                beside.write_text("2")
        assert read_json(tmp_path / name) == 2
    with pytest.raises(UsageError, match="too long"):
        write_json(tmp_path / ("a" * 251 + ".json"), 1)
