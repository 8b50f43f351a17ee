"""`evaluate reconstruction`, from files to files, on a tiny real autoencoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from latentvid.cli.main import main
from latentvid.video.writer import VideoWriter


@pytest.fixture(autouse=True)
def _own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(folder / "tiny")
    with VideoWriter(folder / "clip.mp4", fps=8, width=32, height=24) as writer:
        writer.write(torch.linspace(-1, 1, 4 * 3 * 24 * 32).reshape(4, 3, 24, 32))
    (folder / "broken.mp4").write_bytes(b"")
    return folder


def evaluate(folder: Path, clips: list[str], *more: str) -> int:
    words = [str(folder / clip) for clip in clips]
    return main(["evaluate", "reconstruction", *words, "--vae", str(folder / "tiny"), "--device", "cpu", *more])


def test_writes_what_it_was_asked_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, report = tmp_path / "figures.json", tmp_path / "report"
    assert evaluate(folder, ["clip.mp4"], "--json", str(figures), "--report", str(report), "--frames", "3") == 0
    said = capsys.readouterr()
    assert "psnr" in said.out
    assert "evaluating: 1/1 clips" in said.err
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["clips"][0]["num_frames"] == 3
    assert (report / "report.md").is_file()
    before = figures.read_bytes()
    assert evaluate(folder, ["clip.mp4"], "--json", str(figures)) == 2
    assert figures.read_bytes() == before


def test_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, ["clip.mp4"], "--json", "-", "--quiet") == 0
    said = capsys.readouterr()
    assert "psnr" in next(iter(json.loads(said.out)["means"].values()))
    assert said.err == ""


def test_a_clip_that_cannot_be_read_leaves_the_others_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folder, ["clip.mp4", "broken.mp4"], "--quiet") == 6
    said = capsys.readouterr()
    assert "clip.mp4" in said.out
    assert said.err.startswith("error: 1 of 2 clips could not be read")


def test_nothing_to_read_is_code_3_and_no_autoencoder_is_code_4(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, ["broken.mp4"], "--quiet") == 3
    assert main(["evaluate", "reconstruction", str(folder / "clip.mp4"), "--vae", "nothing"]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: checkpoint 'nothing' is neither")
