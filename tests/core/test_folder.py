"""The folder of a run: names of its own, no links, and only what it listed as written is replaced or removed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.files import LOCK, atomic_path, beside_name, write_json
from latentvid.core.folder import Folder, Layout, refuse_links

LAYOUT = Layout(
    files=re.compile(r"run\.json|log|(next/)?parts/\d+\.bin|notes\.md|new/.+"),
    folders=re.compile(r"parts|next|next/parts|new(/.+)?"),
    always=frozenset(["run.json"]),
    grows=frozenset(["log"]),
    documents=re.compile(r"notes\.md"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "run").mkdir()
    made = Folder(tmp_path / "run", LAYOUT)
    with made.held():
        made.begin()
        made.make_folder("parts")
        made.write_json("run.json", {})
        put(made, "parts/1.bin", b"one")
    return made


def put(folder: Folder, name: str, data: bytes) -> None:
    with atomic_path(folder.file(name)) as beside:
        beside.write_bytes(data)


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def own(folder: Folder) -> set[str]:
    return set(tree(folder.path)) - {LOCK}


@pytest.mark.parametrize(
    "name",
    ["../x.bin", "/etc/passwd", "parts/../../x", "parts/1.bin/..", "parts\\1.bin", "diary.txt", "", "parts", "a\0b"],
)
def test_only_names_of_its_own(folder: Folder, name: str) -> None:
    with pytest.raises(CheckpointError, match="no file of such a folder"):
        folder.file(name)
    with folder.held(), pytest.raises(CheckpointError), atomic_path(folder.path / "diary.txt"):
        pass


@pytest.mark.parametrize("at", ["run.json", "parts", "parts/2.bin", "log", LOCK, "next", "parts/any"])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
def test_links_and_pipes_are_refused_wherever_they_lie(tmp_path: Path, folder: Folder, at: str, kind: str) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "2.bin").write_bytes(b"theirs")
    place = folder.path / at
    if place.is_dir():
        place.rename(tmp_path / "was")
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to({"file": outside / "2.bin", "folder": outside, "dangling": outside / "new"}[kind])
    before = tree(outside)
    with pytest.raises(CheckpointError, match="is a link|is no "), folder.held():
        pass
    if at not in (LOCK, "parts/any"):
        with pytest.raises(CheckpointError, match="is a link|is no "):
            folder.file(f"{at}/2.bin" if at == "parts" else f"{at}/parts/2.bin" if at == "next" else at)
    assert tree(outside) == before
    (tmp_path / "linked").symlink_to(folder.path)
    with pytest.raises(CheckpointError, match="name the folder itself"):
        Folder(tmp_path / "linked", LAYOUT).check()


def replaced(folder: Folder, data: bytes) -> None:
    put(folder, "parts/1.bin", data)


def moved(folder: Folder, data: bytes) -> None:
    folder.make_folder("next/parts")
    put(folder, "next/parts/1.bin", data)
    folder.move("next/parts/1.bin", "parts/1.bin")


def installed(folder: Folder, data: bytes) -> None:
    (folder.make_folder("new") / "1.bin").write_bytes(data)
    try:
        folder.install("new", "parts")
    finally:
        folder.drop("new")


@pytest.mark.parametrize("how", [replaced, moved, installed])
def test_what_somebody_changed_is_not_replaced(folder: Folder, how: Callable[[Folder, bytes], None]) -> None:
    with folder.held():
        how(folder, b"new")
        assert tree(folder.path)["parts/1.bin"] == b"new"
        (folder.path / "parts" / "1.bin").write_bytes(b"theirs")
        with pytest.raises(UsageError, match="was not written by this run, or was changed since"):
            how(folder, b"newer")
    assert folder.changed() == ["parts/1.bin"]
    assert tree(folder.path)["parts/1.bin"] == b"theirs"


def test_only_what_it_wrote_is_removed(folder: Folder) -> None:
    theirs = {"parts/2.bin": b"x", ".diary": b"x", "parts/.diary": b"x", "diary.txt": b"x", ".parts.12345678.bin": b"x"}
    for name, data in theirs.items():
        (folder.path / name).write_bytes(data)
    (folder.path / "parts" / beside_name("7.bin")).write_bytes(b"half")  # of a killed process
    with folder.held():
        folder.sweep()
        assert own(folder) == {*theirs, "parts/1.bin", "run.json"}
        assert not folder.remove("parts/2.bin")
        assert not folder.remove_all()
    assert {name: data for name, data in tree(folder.path).items() if name != LOCK} == theirs
    for name in theirs:
        (folder.path / name).unlink()
    with folder.held():
        assert folder.remove_all()
    assert not folder.path.exists()


def test_what_makes_it_such_a_folder_is_removed_last(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **more: removed.append(path.name) or real(path, **more))
    with folder.held():
        put(folder, "parts/2.bin", b"two")
        removed.clear()
        folder.clear()
    assert removed == ["1.bin", "2.bin", "run.json"]


def test_folders_from_before_there_were_lists_own_their_names(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("parts/1.bin", "run.json", "notes.md", "diary.txt", LOCK):
        (tmp_path / name).write_bytes(b"")
    folder = Folder(tmp_path, LAYOUT)
    with folder.held():
        put(folder, "parts/1.bin", b"new")
        with pytest.raises(UsageError, match="was changed since"):
            put(folder, "notes.md", b"new")  # a document may have been edited
        (tmp_path / "notes.md").unlink()
        put(folder, "notes.md", b"new")
        put(folder, "notes.md", b"newer")
        folder.remove_all()
    assert set(tree(tmp_path)) == {"diary.txt", LOCK}


def test_what_grows_is_known_even_where_a_kill_cut_it_short(folder: Folder, tmp_path: Path) -> None:
    with folder.held():
        folder.append("log", b"first\n")
        folder.append("log", b"second\n")
    for torn in (b"first\n", b"first\nsec", b"first\nsecond\n"):
        (folder.path / "log").write_bytes(torn)
        assert folder.is_free("log")
    (folder.path / "log").write_bytes(b"diary")
    assert not folder.is_free("log")
    # A second name of a file, outside, keeps what it has.
    (folder.path / "log").write_bytes(b"first\n")
    os.link(folder.path / "log", tmp_path / "theirs")
    with folder.held():
        folder.append("log", b"third\n")
    assert ((tmp_path / "theirs").read_bytes(), (folder.path / "log").read_bytes()) == (b"first\n", b"first\nthird\n")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_list_that_a_kill_cut_short_goes_on(folder: Folder, cut: int) -> None:
    lock = folder.path / LOCK
    lock.write_bytes(lock.read_bytes()[:-cut] + b'\n["no", "table"]\n' + b"[" * 5000)
    with folder.held():
        put(folder, "parts/3.bin", b"three")
    assert folder.is_listed
    assert "parts/3.bin" not in folder.changed()


def test_documents_that_were_edited_stay_and_the_rest_is_installed(folder: Folder) -> None:
    def write(text: str) -> list[str]:
        new = folder.make_folder("new")
        (new / "notes.md").write_text(text)
        write_json(new / "parts" / "9.bin", text)
        return folder.install("new", "")

    with folder.held():
        assert write("a") == write("b") == []
        (folder.path / "notes.md").write_text("mine")
        assert write("c") == ["notes.md"]
    found = tree(folder.path)
    assert (found["notes.md"], found["parts/9.bin"]) == (b"mine", b'"c"\n')
    assert not (folder.path / "new").exists()


def test_one_process_at_a_time(folder: Folder) -> None:
    with folder.held(), pytest.raises(ResourceError, match="another process"), folder.held():
        pass


def test_the_way_below_a_folder_must_not_lead_through_links(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    refuse_links(tmp_path / "out", tmp_path / "out" / "a" / "b.safetensors")
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        refuse_links(tmp_path / "out", tmp_path / "out" / "a" / "b.safetensors")
    with pytest.raises(UsageError, match="does not lie in"):
        refuse_links(tmp_path / "out", tmp_path / "out" / ".." / "b.safetensors")
