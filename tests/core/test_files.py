"""Files that are whole or absent, whoever is killed, whoever else writes, and whatever lies in their way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from latentvid.core.errors import CheckpointError, InputError, LatentVidError, ResourceError, UsageError
from latentvid.core.files import (
    LOCK,
    atomic_path,
    beside_name,
    locked,
    read_json,
    resource_errors,
    sha256_of,
    write_json,
)

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


def write(target: Path, data: bytes, *, overwrite: bool = True, meanwhile: Callable[[], object] = lambda: None) -> None:
    with atomic_path(target, overwrite=overwrite) as beside:
        beside.write_bytes(data)
        meanwhile()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_failure_leaves_what_was(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(target, b"new", meanwhile=interrupt)
    assert (names(tmp_path), target.read_bytes()) == (["a.bin"], b"old")
    with pytest.raises(UsageError, match="--overwrite"), atomic_path(target, overwrite=False):
        pass


@pytest.mark.parametrize("how", ["file", "link", "no hard links"])
def test_what_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    target, other = tmp_path / "a.bin", tmp_path / "other.bin"
    other.write_bytes(b"theirs")

    def appear() -> None:
        target.symlink_to(other) if how == "link" else target.write_bytes(b"theirs")

    def no_link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if how == "no hard links":
        monkeypatch.setattr(os, "link", no_link)
        write(tmp_path / "b.bin", b"mine", overwrite=False)
        assert (tmp_path / "b.bin").read_bytes() == b"mine"
        (tmp_path / "b.bin").unlink()
    with pytest.raises(UsageError, match="put there meanwhile, and was left"):
        write(target, b"mine", overwrite=False, meanwhile=appear)
    assert target.read_bytes() == other.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.bin", "other.bin"]
    write(target, b"mine", meanwhile=lambda: target.unlink() or appear())
    assert (target.read_bytes(), other.read_bytes()) == (b"mine", b"theirs")


def test_what_a_killed_writer_leaves_is_used_again_and_a_living_one_is_waited_for(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 60 + ".bin")
    with subprocess.Popen([sys.executable, "-c", STUCK, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UsageError, match="another process is writing it"):
            write(target, b"mine")
        process.send_signal(signal.SIGKILL)
        process.wait()
    (leftover,) = names(tmp_path)
    assert (tmp_path / leftover).read_bytes() == b"half"
    time.sleep(0.01)
    with atomic_path(target) as beside:
        assert beside.name == leftover
        assert beside.read_bytes() == b""
        beside.write_bytes(b"whole")
    assert (names(tmp_path), target.read_bytes()) == ([target.name], b"whole")


def test_names_that_are_no_text_pass_through_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin_\xe9 \xc3\xa9.png")
    write_json(tmp_path / "a.json", {"clip": name})
    assert read_json(tmp_path / "a.json") == {"clip": name}


def test_temporary_names_fit_where_the_name_itself_does(tmp_path: Path) -> None:
    for name in ("日" * 80 + ".json", "a" * 250 + ".json", os.fsdecode(b"\xe9" * 250) + ".json"):
        write_json(tmp_path / name, 1)
        with atomic_path(tmp_path / name) as beside:
            beside.write_text("2")
        assert read_json(tmp_path / name) == 2
    with pytest.raises(UsageError, match="too long"):
        write_json(tmp_path / ("a" * 251 + ".json"), 1)


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "of the target"])
def test_nothing_is_written_through_what_lies_at_the_hidden_name(tmp_path: Path, kind: str) -> None:
    target, victim = tmp_path / "a.bin", tmp_path / "victim"
    victim.write_bytes(b"theirs")
    hidden = tmp_path / beside_name("a.bin")
    if kind == "link":
        hidden.symlink_to(victim)
    elif kind == "dangling":
        hidden.symlink_to(tmp_path / "new")
    elif kind == "hard link":
        os.link(victim, hidden)
    elif kind == "pipe":
        os.mkfifo(hidden)
    else:  # a writer that was killed after its file had got its name
        write(target, b"old")
        os.link(target, hidden)
    write(target, b"mine")
    assert (target.read_bytes(), victim.read_bytes()) == (b"mine", b"theirs")
    assert not (tmp_path / "new").exists()
    assert (hidden.name in names(tmp_path)) == (kind != "of the target")


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_is_a_file_and_is_never_cut(tmp_path: Path, kind: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    lock = folder / LOCK
    victim.write_bytes(b"theirs")
    lock.write_bytes(b"kept")
    with locked(folder), pytest.raises(ResourceError, match="another process is working"), locked(folder):
        pass
    assert lock.read_bytes() == b"kept"
    lock.unlink()
    os.link(victim, lock)
    with locked(folder) as handle:
        assert handle is not None
        os.write(handle, b"mine")
    assert (lock.read_bytes(), victim.read_bytes()) == (b"theirsmine", b"theirs")
    lock.unlink()
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(victim if kind == "link" else tmp_path / "new")
    with pytest.raises(CheckpointError, match="is a link, or no file|is no file"), locked(folder):
        pass
    assert victim.read_bytes() == b"theirs"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), ResourceError),
        (OSError(errno.EDQUOT, "full"), ResourceError),
        (OSError(errno.EFBIG, "full"), ResourceError),
        (OSError(errno.EROFS, "read-only"), UsageError),
        (OSError(errno.EACCES, "no"), UsageError),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), ResourceError),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), ResourceError),
        (OSError(errno.ENOENT, "gone"), OSError),
        (RuntimeError("shapes"), RuntimeError),
    ],
)
def test_full_and_closed_disks_are_told_whichever_library_meets_them(
    tmp_path: Path, error: Exception, kind: type[Exception]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(kind) as caught:
        write(tmp_path / "a.bin", b"x", meanwhile=fail)
    assert isinstance(caught.value, LatentVidError) == issubclass(kind, LatentVidError)
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork") or not sys.platform.startswith("linux"), reason="limits file sizes")
def test_a_disk_that_is_really_full_is_told(tmp_path: Path) -> None:
    """Files may grow to 64 KiB in the child; every library's writer meets it."""
    import resource

    from safetensors.torch import save_file

    def saves(save: Callable[[Path], object]) -> str:
        try:
            with resource_errors(tmp_path):
                save(tmp_path / "big")
        except ResourceError:
            return "told"
        except BaseException as error:
            return repr(error)
        return "missed"

    big = torch.zeros(1 << 16)
    kinds: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(bytes(1 << 18)),
        lambda path: torch.save(big, path),
        lambda path: save_file({"x": big}, path),
    ]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        os.write(writer, json.dumps([saves(kind) for kind in kinds]).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        assert json.load(said) == ["told"] * 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[" * 100_000, "nested too deeply"), ('{"x": NaN}', "NaN is no number"), ("{", "not valid JSON")],
)
def test_json_of_strangers_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_json(path, finite=True)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "link.json", follow_links=False)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="no regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="no regular file"):
        sha256_of(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="larger than 0"):
        read_json(path, max_bytes=0)
