"""Tampered run folders: whatever they hold, nothing outside changes, no code runs, and the verb says so in time.

A few of them are tried by default; `LATENTVID_ATTACK=60` tries 60, and 0 all, every verb on each.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from latentvid.cli.main import main
from latentvid.film.generate import generate_film
from latentvid.film.make import Progress
from latentvid.pipeline import LatentVideoPipeline
from tests.attack.tampered import Case, cases, make_outside, snapshot
from tests.film.tiny import STEPS, tiny_pipeline

WANTED = int(os.environ.get("LATENTVID_ATTACK", "12"))
ALL = cases()
TRIED = ALL[:: max(1, len(ALL) // WANTED)][:WANTED] if WANTED else ALL
MOST_S = 20.0
_SHORT = ["--steps", "2", "--device", "cpu", "--quiet"]
VERBS = {
    "resume": ["resume", "in.run", "--quiet"],
    "reroll": ["reroll", "in.run", "--window", "1", "--quiet"],
    "inspect": ["inspect", "in.run", "--quiet"],
    "extend": ["extend", "in.mp4", "-o", "new.mp4", "--frames", "3", *_SHORT],
    "extend onto": ["extend", "clip.mp4", "-o", "in.mp4", "--frames", "3", "--overwrite", *_SHORT],
    "generate": ["generate", "sea", "-o", "in.mp4", "--frames", "8", *_SHORT],
    "generate onto": ["generate", "sea", "-o", "in.mp4", "--frames", "8", "--overwrite", *_SHORT],
    "drift": ["drift", "in.mp4", "--quiet"],
    "plan": ["plan", "extend", "in.mp4", "--frames", "3", *_SHORT],
}
MAY_CHANGE = {"resume": "in.mp4", "reroll": "in.mp4", "extend onto": "in.mp4", "generate onto": "in.mp4"}


class Stop(Exception):
    pass


def stop(at: Progress) -> None:
    if at.window == 2 and at.call == 1:
        raise Stop


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model, a finished film `done/in.mp4` and one that was stopped, `stopped/in.run`."""
    folder = tmp_path_factory.mktemp("template")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder / "model")
    for name in ("done", "stopped"):
        out = folder / name / "in.mp4"
        with suppress(Stop):
            generate_film(
                pipeline, "clouds", out, num_frames=20, model=folder / "model",
                on_progress=stop if name == "stopped" else None, **STEPS,
            )  # fmt: skip
    generate_film(pipeline, "clouds", folder / "clip.mp4", num_frames=8, keep_run=False, **STEPS)
    return folder


@pytest.fixture
def _one_model(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the template's model once; what a record names besides is really loaded."""
    real = LatentVideoPipeline.from_pretrained
    kept = real(template / "model")

    def load(folder: object, *rest: object, **more: object) -> LatentVideoPipeline:
        return kept if str(folder) == str(template / "model") else real(folder, *rest, **more)

    monkeypatch.setattr(LatentVideoPipeline, "from_pretrained", load)


def make_home(template: Path, home: Path, case: Case) -> Path:
    """Lay a tampered run, and files of the user's, into `home/here`; return what must stay, `home/outside`."""
    outside = make_outside(home / "outside")
    here = home / "here"
    shutil.copytree(template / ("done" if case.finished else "stopped"), here)
    shutil.copyfile(template / "clip.mp4", here / "clip.mp4")
    if not case.finished:
        shutil.copyfile(template / "clip.mp4", here / "in.mp4")  # as the user's own
    for name in ("holiday.mp4", "s.png", ".profile", "diary.txt"):
        (here / name).write_bytes(b"of the user's")
    case.tamper(here / "in.run", outside)
    return outside


def of_the_user(here: Path, verb: str) -> dict[str, object]:
    """Return the state of the files beside the run that the verb has no leave to change."""
    named = {"new.mp4", "new.run", "in.run", MAY_CHANGE.get(verb, "")}
    return {p.name: snapshot(p)[str(p)] for p in here.iterdir() if p.name not in named}


def foreign(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.rglob("*diary*") if not p.is_symlink()}


def check(verb: str, case: Case, template: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside, here = make_home(template, home, case), home / "here"
    os.chdir(here)
    before, own, diaries, start = snapshot(outside), of_the_user(here, verb), foreign(here / "in.run"), time.monotonic()
    code = main([*VERBS[verb], *(["--model", str(template / "model")] if verb[:4] in ("exte", "gene", "plan") else [])])
    seconds, said = time.monotonic() - start, capsys.readouterr().err
    what = f"{verb} of a run with {case.name!r} ({'done' if case.finished else 'stopped'}): {code}, {said}"
    assert code in (0, 2, 3, 4, 5), what
    assert code == 0 or (said.strip().count("\n") <= 2 and "error: " in said and "Traceback" not in said), what
    assert seconds < MOST_S, what
    assert snapshot(outside) == before, what
    assert of_the_user(here, verb) == own, what
    assert foreign(here / "in.run") == diaries, what
    assert not list(home.rglob("pwned")), what


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes and links")
@pytest.mark.usefixtures("_one_model")
@pytest.mark.parametrize("case", TRIED, ids=lambda case: case.name)
def test_nothing_outside_changes(
    case: Case, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    verbs = list(VERBS)
    if WANTED and WANTED < 60:  # two of them each, all in all
        at = 2 * TRIED.index(case)
        verbs = [verbs[(at + k) % len(verbs)] for k in range(2)]
    for number, verb in enumerate(verbs):
        check(verb, case, template, tmp_path / str(number), capsys)
