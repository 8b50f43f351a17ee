"""The verbs that make films, from the command line to files, on a tiny real model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentvid.cli.main import main
from latentvid.core.files import sha256_of
from latentvid.film.make import Maker
from latentvid.video.reader import open_video
from tests.film.tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def _own_warnings() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_generate_extend_reroll_drift(here: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", model, "--steps", "2", "--device", "cpu"]
    words = ["generate", "clouds", "-o", "a.mp4", "--frames", "20", "--contact-sheet", "a.png", *common]
    assert main([*words, "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out)["num_frames"] == 20
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted(p.name for p in here.iterdir()) == ["a.mp4", "a.png", "a.run"]

    assert main(["inspect", "a.run", "--json"]) == 0
    assert last_json(capsys)["num_windows"] == 3
    assert main(["reroll", "a.run", "--window", "1", "--json", "-q"]) == 0
    assert last_json(capsys)["num_frames"] == 20
    assert main(["drift", "a.mp4", "--png", "drift.png", "--json", "-q"]) == 0
    found = last_json(capsys)
    assert [seam["frame"] for seam in found["clips"][0]["seams"]] == [8, 14]  # type: ignore[index]
    assert (here / "drift.png").is_file()
    assert main(["drift", "a.mp4"]) == 0
    assert "luma_mean" in capsys.readouterr().out

    assert main(["extend", "a.mp4", "-o", "b.mp4", "--seconds", "0.5", "--prompt", "sea", *common]) == 0
    said = capsys.readouterr()
    assert "untouched" in said.err
    with open_video("b.mp4") as reader:
        assert reader.meta.num_frames == 26


def test_interrupted_is_130_and_resumes(
    here: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "clouds", "--model", model, "--steps", "2", "--frames", "14", "--device", "cpu", "-q"]
    assert main([*words, "-o", "whole.mp4"]) == 0
    write = Maker.write

    def interrupted(self: Maker, *arguments: object, **more: object) -> int:
        if self.run.num_complete() == 1:
            raise KeyboardInterrupt
        return write(self, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Maker, "write", interrupted)
        assert main([*words, "-o", "film.mp4"]) == 130
    said = capsys.readouterr()
    assert said.err == "interrupted; `latentvid resume film.run` goes on.\n"
    assert not (here / "film.mp4").exists()
    assert main(["resume", "film.run", "--json", "-q"]) == 0
    assert last_json(capsys)["resumed_at"] == 1
    assert sha256_of("film.mp4") == sha256_of("whole.mp4")
    assert main(["resume", "nothing.run"]) == 3


def test_a_guard_stops_and_the_run_goes_on(here: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "clouds", "--model", model, "--steps", "2", "--frames", "14", "--device", "cpu"]
    assert main([*words, "-o", "a.mp4", "--drift-guard", "stop", "--drift-limit", "0.001"]) == 6
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "watch it while it is made, from its first window on: a.run/preview.m3u8"
    assert "latentvid resume a.run --drift-guard correct" in said[-1]
    assert main(["resume", "a.run", "--drift-guard", "warn", "--drift-limit", "100", "--json"]) == 0
    said = capsys.readouterr()
    assert "every window within 10000%" in said.err
    assert json.loads(said.out)["num_frames"] == 14
    assert main([*words, "-o", "b.mp4", "--start-image", "none.png"]) == 2
    assert "one noise level" in capsys.readouterr().err


def test_plans_make_nothing(here: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--frames", "1000", "--model", model, "--steps", "4", "--device", "cpu"]
    assert main(["plan", "generate", "clouds", *words, "--json"]) == 0
    planned = last_json(capsys)
    assert (planned["num_windows"], planned["num_calls"]) == (167, 167 * 4)
    assert planned["seconds"] > 0  # type: ignore[operator]
    assert main(["generate", "clouds", "-o", "a.mp4", *words, "--dry-run"]) == 0
    assert "167 of 8 frames, 2 shared" in capsys.readouterr().out
    words[1] = str(10**12)
    assert main(["plan", "generate", "clouds", *words]) == 5
    assert "would fit" in capsys.readouterr().err
    assert not list(here.iterdir())
