"""The plan of the house: rooms import downwards only, outside things have one owner, every shipped config loads."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentvid.core.config import read_tree

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "latentvid"

ROWS = [
    {"core"},
    {"video", "noise", "temporal", "sampling"},
    {"autoencoders", "denoisers", "data", "metrics"},
    {"pipeline", "pipeline_call", "pipeline_folder", "extension"},
    {"training", "evaluation", "convert", "film"},
    {"finetuning"},
    {"cli", "ui"},
]
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
NEIGHBOURS = {
    ("pipeline", "extension"),
    ("pipeline", "pipeline_call"),
    ("pipeline", "pipeline_folder"),
    ("pipeline_folder", "extension"),
}
"""Rooms of one row of which the first may use the second."""

OWNERS = {
    "av": "video/",
    "decord": "video/",
    "accelerate": "training/loop.py",
    "ray": "autoencoders/ray_batch.py",
    "typer": "cli/",
}
"""Outside packages that a single room, or file, knows."""

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield node.lineno, node.module or ""


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    here = file.relative_to(PACKAGE)
    room = room_of(here.parts)
    for line, name in imports(file):
        top, *rest = name.split(".")
        if top in OWNERS:
            assert str(here).startswith(OWNERS[top]), f"{here}:{line}: only {OWNERS[top]} knows {top}"
        if top != "latentvid" or not rest or (len(here.parts) == 1 and room in ("__init__", "__main__")):
            continue
        assert room in ROW, f"{here}: the room {room!r} is not in the plan"
        other = rest[0]
        allowed = other == room or ROW[other] < ROW[room] or (room, other) in NEIGHBOURS
        assert allowed, f"{here}:{line}: {room} must not import {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_open_with_a_sentence(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert doc, f"{file} opens without a sentence"
    assert doc.split("\n\n")[0].rstrip().endswith((".", ":")), f"{file}: {doc.splitlines()[0]!r} is no sentence"


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_shipped_configs_are_read(config: Path) -> None:
    assert read_tree(config)


SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: f.name)
def test_scripts_find_what_they_import(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    assert "main" in runpy.run_path(str(script))
