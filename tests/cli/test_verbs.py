"""Every verb's file: help with an example, flags spelled alike, arguments checked before anything is computed."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest

from latentvid import cli
from latentvid.cli import common
from latentvid.cli import main as main_module
from latentvid.cli.main import VERBS, main
from latentvid.core.errors import UsageError

MODULES = {m.name: import_module(f"latentvid.cli.{m.name}") for m in pkgutil.iter_modules(cli.__path__)}
ALL = {name.replace("_", "-"): m.__name__ for name, m in MODULES.items() if hasattr(m, "run") or hasattr(m, "app")}


@pytest.fixture(autouse=True)
def _every_verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(main_module, "VERBS", ALL)
    with warnings.catch_warnings():
        yield


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_offered_is_built(verb: str) -> None:
    source = Path(str(import_module(VERBS[verb]).__file__)).read_text(encoding="utf-8")
    assert "NotImplementedError" not in source


@pytest.mark.parametrize("verb", ALL)
def test_help_has_an_example_of_the_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"\n    latentvid {verb}" in said


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("encode", 2, "Missing argument"),
        ("encode {clip}", 2, "Missing option"),
        ("encode {none} -o a.safetensors", 3, "no such file"),
        ("encode {clip} {clip2} -o {out}.safetensors", 2, "name a folder"),
        ("encode {clip} -o a --shard 3/2", 2, "no share"),
        ("encode {clip} -o a --max-memory lots", 2, "'lots' is not understood"),
        ("encode {clip} -o a --device tpu", 2, "tpu"),
        ("decode a.safetensors -o {clip}", 2, "exists; pass --overwrite"),
        ("generate dusk -o {clip}", 2, "exists; pass --overwrite"),
        ("generate dusk -o a.mp4 --frames 3 --seconds 1", 2, "give one"),
        ("generate dusk -o a.mp4 --frames 0", 2, "--frames"),
        ("generate dusk -o a.mp4 --seconds 0", 2, "no length"),
        ("generate dusk -o a.mp4 --seed -1", 2, "--seed"),
        ("generate dusk -o a.png --contact-sheet a.png", 2, "both the film"),
        ("generate dusk -o a.mp4 --contact-sheet a.jpg", 2, ".png"),
        ("extend {clip} -o a.mp4", 2, "how long?"),
        ("extend {none} -o a.mp4 --frames 3", 3, "no such file"),
        ("extend {clip} -o {clip} --frames 3 --overwrite", 2, "the clip itself"),
        ("finetune-decoder {clip} -o a --val {folder}", 2, "must not be trained on"),
    ],
)
def test_wrong_arguments_are_one_line_at_once(
    words: str,
    code: int,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "clip2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    names = {"clip": "clip.mp4", "clip2": "clip2.mp4", "none": "none.mp4", "out": "out", "folder": "."}
    assert main(words.format(**names).split()) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "clip2.mp4"]


def test_every_clip_has_its_place(tmp_path: Path) -> None:
    encode = import_module("latentvid.cli.encode")
    clips = [(Path("a/film.mp4"), "film.mp4"), (Path("a/film.mov"), "film.mov"), (Path("a/b/film.mp4"), "b/film.mp4")]
    jobs = [(clip, tmp_path / f"{name}.safetensors") for clip, name in clips]
    assert encode.plan_jobs(clips, tmp_path) == jobs
    with pytest.raises(UsageError, match="would both become"):
        encode.plan_jobs([*clips, (Path("c/film.mp4"), "film.mp4")], tmp_path)
    shares = [encode.plan_jobs(clips, tmp_path, encode.Share(number, 3)) for number in (1, 2, 3)]
    assert sorted(job for share in shares for job in share) == sorted(jobs)
    # A share depends on the names alone: files that are added later move no other.
    assert encode.plan_jobs(clips[:2], tmp_path, encode.Share(1, 3)) == [job for job in shares[0] if job in jobs[:2]]


def test_shares() -> None:
    parse = import_module("latentvid.cli.encode").parse_share
    assert parse("2/8") == (2, 8)
    for wrong in ("0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4x"):
        with pytest.raises(UsageError, match="no share"):
            parse(wrong)


def test_lengths() -> None:
    fps = Fraction(30000, 1001)
    assert common.num_frames(None, None, fps=fps, default=64) == 64
    assert common.num_frames(7, None, fps=fps, default=64) == 7
    assert common.num_frames(None, 2.0, fps=fps, default=64) == 60
    assert common.num_frames(None, 0.001, fps=fps, default=64) == 1
