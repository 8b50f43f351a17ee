"""Training folders and disks: the user's files stay, kills and full disks lose nothing."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentvid.core import files as disk
from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError, UsageError
from latentvid.core.files import LOCK, sha256_of
from latentvid.core.folder import Folder
from latentvid.training import loop as looping
from latentvid.training.loop import saved_states, train
from tests.training.test_loop import assert_equal_runs, run
from tests.training.toys import CONFIG, ToyTask


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def tree(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): sha256_of(p) for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["export/thesis.txt", "export/toy.safetensors", "result.json", "loop.json", "log.jsonl", "state/notes.txt"]
)
def test_a_folder_with_files_of_the_users_is_refused(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="was not written by this run|holds a training run already"):
        run(tmp_path, resume=resume)
    assert (tmp_path / name).read_text() == "mine"
    assert set(tree(tmp_path)) == {name}


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path, whole: Path) -> None:
    for name in ("thesis.txt", ".thesis", "sub/thesis.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    run(tmp_path)
    (tmp_path / "export" / "thesis.txt").write_text("mine")
    (tmp_path / "state" / ".step-old").mkdir()
    (tmp_path / "state" / "step-10" / "notes.txt").write_text("mine")
    run(tmp_path, config=CONFIG.model_copy(update={"steps": 20}), resume=True)
    kept = {name for name in tree(tmp_path) if (tmp_path / name).read_bytes() == b"mine"}
    assert kept == {
        "thesis.txt", ".thesis", "sub/thesis.txt", "export/thesis.txt", "state/step-10/notes.txt",
    }  # fmt: skip
    assert (tmp_path / "state" / ".step-old").is_dir()
    assert sorted(p.name for p in (tmp_path / "state" / "step-10").iterdir()) == ["notes.txt"]


def test_what_was_edited_of_a_finished_run_stays(tmp_path: Path) -> None:
    run(tmp_path)
    weights = tmp_path / "export" / "toy.safetensors"
    weights.write_bytes(b"mine")
    with pytest.warns(UserWarning, match="was changed since it was written; it is left as it is"):
        run(tmp_path, resume=True)  # what would be written there is known
    assert weights.read_bytes() == b"mine"
    more = CONFIG.model_copy(update={"steps": 14})
    with pytest.raises(UsageError, match="toy.safetensors was not written by this run"):
        run(tmp_path, config=more, resume=True)
    assert weights.read_bytes() == b"mine"
    assert saved_states(tmp_path)[-1].name == "step-14"  # what was trained is not lost
    weights.unlink()
    run(tmp_path, config=more, resume=True)
    assert load_file(weights)
    (tmp_path / "result.json").write_text("mine")
    with pytest.raises(UsageError, match="result.json was not written"):
        run(tmp_path, config=more, resume=True)


def test_runs_from_before_there_were_lists_go_on(tmp_path: Path, whole: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path, on_record=stop)
    (tmp_path / LOCK).write_bytes(b"")
    run(tmp_path, resume=True)
    (tmp_path / LOCK).write_bytes(b"")
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize(
    "name", ["state", "state/step-10", "export", "log.jsonl", "result.json", LOCK, "state/.step-7"]
)
def test_links_are_refused(tmp_path: Path, name: str) -> None:
    run(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "theirs").write_text("theirs")
    place = tmp_path / "run" / name
    if place.exists():
        place.rename(tmp_path / "was")
    place.symlink_to(outside if name in ("state", "export") or "step" in name else outside / "theirs")
    with pytest.raises(CheckpointError, match="is a link"):
        run(tmp_path / "run", resume=True)
    assert tree(outside) == {"theirs": sha256_of(outside / "theirs")}


SEAMS: dict[str, tuple[object, str]] = {
    "the list": (Folder, "_append_to_list"),
    "the log": (Folder, "append"),
    "a state": (looping.torch, "save"),
    "an export": (ToyTask, "export"),
    "every file": (disk, "sync"),
    "a subfolder": (Folder, "make_folder"),
}


def failing(real: Callable[..., Any], at: int, error: OSError) -> Callable[..., Any]:
    calls = iter(range(1, 10_000))

    def call(*given: Any, **more: Any) -> Any:
        if next(calls) == at:
            with disk.resource_errors(Path("disk")):
                raise error
        return real(*given, **more)

    return call


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EROFS, UsageError)])
@pytest.mark.parametrize("seam", SEAMS)
def test_a_disk_that_gives_out_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seam: str, number: int, kind: type[LatentVidError]
) -> None:
    place, name = SEAMS[seam]
    told = 0
    for at in (1, 2, 3, 5):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), at, OSError(number, "it gave out")))
            try:
                run(tmp_path, resume=True)
            except kind:
                told += 1
    assert told
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)
    assert not [p for p in tmp_path.rglob(".*") if p.name != LOCK]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_while_files_are_written(whole: Path, tmp_path: Path) -> None:
    """Child n dies by SIGKILL at its n-th, 2n-th ... operation on files, until one gets through."""
    folder, children = tmp_path / "run", 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    while children < 60:
        children += 1
        pid = os.fork()
        if pid == 0:
            kill_at(3 + children)
            train(ToyTask(), CONFIG, folder, device="cpu", resume=True)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            break
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(status) == 0
    assert children > 8
    assert_equal_runs(folder, whole)
    assert not [p for p in folder.rglob(".*") if p.name != LOCK]
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


def kill_at(limit: int) -> None:
    """Let this process die at its `limit`-th rename, write to a list, or removal."""
    count = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count >= limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)

        return call

    for place, name in ((os, "replace"), (os, "rename"), (os, "write"), (os, "unlink"), (os, "rmdir"), (torch, "save")):
        setattr(place, name, counting(getattr(place, name)))
