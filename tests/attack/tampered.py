"""Run folders as a stranger might send them: links, foreign names, numbers and files at every place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentvid.core.files import beside_name, sha256_of

Tamper = Callable[[Path, Path], None]
"""Changes a run folder; the second path is a folder outside of it, which must stay as it is."""


@dataclass(frozen=True)
class Case:
    """One tampered run folder."""

    name: str
    tamper: Tamper
    finished: bool
    """Whether the run's film was made before."""


def snapshot(*roots: Path) -> dict[str, object]:
    """Return kind, mode, time and hash of everything below some folders, links not followed."""
    found: dict[str, object] = {}
    for root in roots:
        for place in [root, *sorted(root.rglob("*"))]:
            about = place.lstat()
            if place.is_symlink():
                content: object = os.readlink(place)
            else:
                content = sha256_of(place) if place.is_file() else ""
            found[str(place)] = (about.st_mode, about.st_mtime_ns, content)
    return found


def make_outside(folder: Path) -> Path:
    """Make the files of somebody's that must stay: named and filled like those of a run, hidden ones too."""
    for name in ("a.txt", ".hidden", "000000.mp4", "000001.json", ".000000.mp4", "deep/windows/000000.json", "s.png"):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"theirs " + name.encode())
    os.mkfifo(folder / "pipe")
    return folder


# --- links ---------------------------------------------------------------------------------------------------------

_FILES = (
    ".lock", "run.json", "preview.m3u8", "drift.json", "drift.png", "film.mp4", "sheet.png", "given.safetensors",
    "windows/000000.json", "windows/000001.mp4", "windows/000001.safetensors", "windows/000009.mp4",
    "carry/000002.safetensors", "carry/000001.safetensors", "preview/000000.ts", "next/run.json",
    "next/windows/000001.json", beside_name("run.json"), f"windows/{beside_name('000002.mp4')}",
    f"carry/{beside_name('000003.safetensors')}",
)  # fmt: skip
_FOLDERS = ("windows", "preview", "carry", "next", "next/windows")


def _link(name: str, kind: str) -> Tamper:
    def tamper(run: Path, outside: Path) -> None:
        place = run / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        if kind == "hard":
            os.link(outside / "a.txt", place)
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            targets = {"file": "a.txt", "folder": ".", "deep": "deep", "dangling": "new", "to a pipe": "pipe"}
            place.symlink_to(outside / targets[kind])

    return tamper


def _links() -> Iterator[tuple[str, Tamper]]:
    kinds = ("file", "hard", "dangling", "pipe", "to a pipe", "folder")
    for number, name in enumerate(_FILES):
        for kind in (kinds[number % len(kinds)], kinds[(number + 1) % len(kinds)]):
            yield f"{name} is a link: {kind}", _link(name, kind)
    for number, name in enumerate(_FOLDERS):
        for kind in ("folder", ("deep", "dangling", "file", "pipe")[number % 4]):
            yield f"{name} is a link: {kind}", _link(name, kind)


# --- records -------------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a run."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def _settings(**values: Any) -> Tamper:
    """Set settings; `OUT` in a word stands for the outside."""

    def tamper(run: Path, outside: Path) -> None:
        filled = json.loads(json.dumps(values).replace("OUT", str(outside)))
        edit(run / "run.json", lambda record: record["settings"].update(filled))

    return tamper


def _record(**values: Any) -> Tamper:
    return lambda run, outside: edit(run / "run.json", lambda record: record.update(values))


def _plan(**values: Any) -> Tamper:
    return lambda run, outside: edit(run / "run.json", lambda record: record["plan"].update(values))


def _window(**values: Any) -> Tamper:
    def tamper(run: Path, outside: Path) -> None:
        filled = json.loads(json.dumps(values).replace("OUT", str(outside)))
        edit(run / "windows" / "000000.json", lambda record: record.update(filled))

    return tamper


def _text(text: str) -> Tamper:
    return lambda run, outside: (run / "run.json").write_text(text) and None


def _huge(run: Path, outside: Path) -> None:
    """Number everything of a long film consistently, so that no comparison within the record tells."""

    def change(record: dict[str, Any]) -> None:
        record["settings"]["num_frames"] = record["plan"]["num_frames"] = 10**9
        record["num_windows"] = 1 + -(-(10**9 - 8) // 6)

    edit(run / "run.json", change)


_CLIP = {
    "path": "OUT/a.txt", "sha256": "0" * 64, "width": 32, "height": 32, "fps": "12", "num_frames": 8, "num_added": 8,
    "is_retimed": False, "how": "copy", "own": {"run": "OUT", "num_frames": 8},
}  # fmt: skip


def _film_by_hash(run: Path, outside: Path) -> None:
    film = run.parent / "holiday.mp4"
    _settings(film=film.name)(run, outside)
    _record(film={"sha256": sha256_of(film), "num_frames": 20})(run, outside)


RECORDS: list[tuple[str, Tamper]] = [
    *((f"film {name!r}", _settings(film=name, overwrite=True)) for name in (
        "OUT/a.mp4", "../outside/a.mp4", "..", "", "deep/a.mp4", ".hidden.mp4", "in.run", "a\0.mp4", "in.html", 5,
    )),
    ("another film of the user's", _settings(film="holiday.mp4", overwrite=True)),
    ("another film of the user's, by its hash", _film_by_hash),
    ("a sheet outside", _settings(contact_sheet="OUT/s.png", overwrite=True)),
    ("a sheet up and in", _settings(contact_sheet="../outside/new.png", overwrite=True)),
    ("a sheet of the user's", lambda run, outside: _settings(
        contact_sheet=str(run.parent / "s.png"), overwrite=True)(run, outside)),
    ("a sheet that is no picture", lambda run, outside: _settings(
        contact_sheet=str(run.parent / ".profile"), overwrite=True)(run, outside)),
    ("pictures outside", _settings(start_image={"path": "OUT/a.txt", "sha256": "0" * 64})),
    ("a picture that is a pipe", _settings(end_image={"path": "OUT/pipe", "sha256": "0" * 64})),
    ("a clip outside", _settings(kind="extend", clip=_CLIP)),
    ("a clip that is a device", _settings(kind="extend", clip={**_CLIP, "path": "/dev/zero"})),
    ("a clip that is a pipe", _settings(kind="extend", clip={**_CLIP, "path": "OUT/pipe"})),
    ("a model outside", _settings(model="OUT")),
    ("a model that is a pipe", _settings(model="OUT/pipe")),
    ("no model", _settings(model=None)),
    ("a model that is a number", _settings(model=5)),
    ("steps", _settings(num_inference_steps=10**9)),
    ("frames", _settings(num_frames=10**9)),
    ("frames, windows and plan", _huge),
    ("height", _settings(height=10**9)),
    ("no height", _settings(height=-1)),
    ("threads", _settings(place={"threads": 10**9})),
    ("a device", _settings(place={"device": "meta"})),
    ("a device that is none", _settings(place={"device": "cuda:99", "dtype": "fp99", "attention": "evil"})),
    ("seed", _settings(seed=10**400)),
    ("rates", _settings(fps="1/0", model_fps="1e999999999")),
    ("a rate", _settings(fps="1/1000000000000000000")),
    ("NaN", _settings(guidance_scale=float("nan"), crf=float("inf"))),
    ("a solver", _settings(solver="__import__('os').system('touch pwned')")),
    ("a rule", _settings(rule={"kind": "context", "overlap": 10**9})),
    ("another rule", _settings(rule={"kind": "context", "overlap": 2})),
    ("prompts", _settings(prompts={"prompts": {"0-": "x", "9" * 5000 + "-": "y"}})),
    ("a setting that is none", _settings(evil=1)),
    ("windows", _record(num_windows=10**9)),
    ("no weights", _record(weights={})),
    ("versions", _record(versions={"torch": "x" * 10**6})),
    ("rerolls", _record(rerolls=[{"window": 10**9, "seed": 1, "prompt": ""}])),
    ("a finished film", _record(film={"sha256": "0" * 64, "num_frames": 10**9})),
    ("the plan's window", _plan(window=10**9)),
    ("the plan's overlap", _plan(overlap=-1)),
    ("the plan's start", _plan(given=10**9)),
    ("the plan's words", _plan(evil=1)),
    ("files outside", _window(sha256={"OUT/a.txt": "0" * 64, "../../outside/a.txt": "0" * 64})),
    ("a window's number", _window(index=10**9)),
    ("a window's frames", _window(num_new=10**9, first_frame=-5)),
    ("a window's shown frames", _window(num_shown=10**9)),
    ("a window without curves", _window(curves={})),
    ("a window's strange curves", _window(curves={"luma_mean": [1.0] * 3, "evil": [1.0]})),
    ("a window's NaN", _window(curves={"luma_mean": [float("nan")] * 8})),
    ("deep JSON", _text("[" * 200_000)),
    ("deep tables", _text('{"settings":' * 50_000)),
    ("a list", _text("[]")),
    ("nothing", _text("")),
    ("a long number", _text('{"format": ' + "9" * 10_000 + "}")),
    ("a large record", lambda run, outside: _text('{"type": "run", "x": "' + "x" * (17 << 20) + '"}')(run, outside)),
]  # fmt: skip


# --- files ---------------------------------------------------------------------------------------------------------


def _remove(name: str) -> Tamper:
    def tamper(run: Path, outside: Path) -> None:
        place = run / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    return tamper


def _swap(run: Path, outside: Path) -> None:
    for suffix in (".json", ".mp4", ".safetensors"):
        one, other, aside = (run / "windows" / f"{name}{suffix}" for name in ("000000", "000001", "aside"))
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def _replace(name: str, write: Callable[[Path], object]) -> Tamper:
    """Replace a file of window 1, and its hash in the window's record."""

    def tamper(run: Path, outside: Path) -> None:
        place = run / name
        if not place.exists():  # the carry that a finished film left
            place = next((run / "carry").iterdir())
        write(place)
        found = place.relative_to(run).as_posix()
        for record in (run / "windows").glob("*.json"):
            edit(
                record,
                lambda table: table["sha256"].update({found: sha256_of(place)} if found in table["sha256"] else {}),
            )

    return tamper


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _foreign(run: Path, outside: Path) -> None:
    for name in (
        ".diary",
        "diary.txt",
        "windows/.diary",
        "windows/diary.txt",
        "carry/.000001.safetensors",
        "next/.diary",
    ):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"of the user's")


def _claim(run: Path, outside: Path) -> None:
    _foreign(run, outside)
    names = ("diary.txt", "../diary.txt", str(outside / "a.txt"), "../outside/a.txt", "windows/diary.txt")
    (run / ".lock").write_text("\n".join(json.dumps({"name": name, "bytes": 13, "sha256": ""}) for name in names))


FILES: list[tuple[str, Tamper]] = [
    *((f"without {name}", _remove(name)) for name in (
        "run.json", "windows", "carry", "windows/000000.safetensors", "windows/000001.mp4", "windows/000000.json",
        ".lock",
    )),
    ("windows swapped", _swap),
    ("a segment that is none", _replace("windows/000001.mp4", lambda path: path.write_bytes(b"no film"))),
    ("latents of another shape", _replace(
        "windows/000001.safetensors", lambda path: save_file({"latents": torch.zeros(1, 9, 7, 5)}, path))),
    ("a carry of another shape", _replace(
        "carry/000002.safetensors",
        lambda path: save_file({"tail.latents": torch.zeros(3, 1), "decoder.x": torch.ones(7)}, path))),
    ("a carry that is a pickle", _replace("carry/000002.safetensors", lambda path: torch.save(_Evil(), path))),
    ("latents that are a pickle", _replace("windows/000001.safetensors", lambda path: torch.save(_Evil(), path))),
    ("foreign files", _foreign),
    ("a list that claims them", _claim),
]  # fmt: skip


def cases() -> list[Case]:
    """Return all cases, links, records and files mixed, every second of a film that was made before."""
    groups = [list(_links()), RECORDS, FILES]
    mixed: list[tuple[str, Tamper]] = []
    while any(groups):
        for group in groups:
            mixed += [group.pop(0)] if group else []
    return [Case(name, tamper, number % 2 == 0) for number, (name, tamper) in enumerate(mixed)]
