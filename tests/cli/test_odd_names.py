"""Clips whose names are no text, too long, or commands to a terminal: each works or fails alone, and is shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from latentvid.autoencoders.codec import recorded_source
from latentvid.autoencoders.latent_file import LatentFile
from latentvid.cli.main import main

LATIN, LONG, ESCAPE = b"latin_\xe9.png", b"a" * 246 + b".png", b"esc\x1b[2J\nok.png"


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
    ).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def still(folder: Path, name: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / os.fsdecode(name)
    try:
        with path.open("wb") as stream:
            Image.new("RGB", (16, 16)).save(stream, "PNG")
    except OSError:
        pytest.skip("this file system has no such names")
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_batch_with_odd_names_is_done_but_for_what_cannot_be(vae: Path, tmp_path: Path, encoding: str) -> None:
    for name in (LATIN, LONG, ESCAPE, "ünï日本.png".encode(), "日".encode() * 78 + b".png"):
        still(tmp_path / "in", name)
    for words in ([], ["--json"], ["--shard", "1/1"]):
        raw, err = io.BytesIO(), io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--vae", str(vae), *words])
        said = raw.getvalue().decode(encoding)
        assert code == 6
        assert said.replace("\n", "").isprintable()
        if "--json" in words:
            assert json.loads(said)["counts"]["failed"] == 1
    assert len(list((tmp_path / "out").iterdir())) == 4
    for path in (tmp_path / "out").iterdir():
        LatentFile(path).verify()


def test_a_clip_of_a_name_that_is_no_text_is_found_again(vae: Path, tmp_path: Path) -> None:
    clip, target = still(tmp_path / "in", LATIN), tmp_path / "a.safetensors"
    assert main(["encode", str(clip), "-o", str(target), "--vae", str(vae), "--quiet"]) == 0
    file = LatentFile(target)
    assert file.meta.source_name == "latin_%E9.png"
    assert recorded_source(file).samefile(clip)


def test_patterns_that_lead_out_of_their_folder_write_into_the_output(vae: Path, tmp_path: Path) -> None:
    still(tmp_path, b"x.png")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    out = tmp_path / "deep" / "out"
    pattern = str(tmp_path / "in" / "*" / ".." / ".." / "x.png")
    assert main(["encode", pattern, "-o", str(out), "--vae", str(vae), "--quiet"]) == 0
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png.safetensors")] == [
        "deep/out/x.png.safetensors"
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", "x" * 5000], 3),
        (["inspect", "a\0b"], 2),
        (["encode", "x" * 5000, "-o", "out"], 2),
        (["encode", "{clip}", "-o", "out", "--vae", "x" * 5000], 4),
        (["encode", "{clip}", "-o", "x" * 300 + ".safetensors", "--vae", "{vae}"], 2),
        (["decode", "x" * 5000 + ".safetensors", "-o", "a.mp4"], 4),
        (["decode", "{clip}", "-o", "x" * 300 + ".mp4"], 2),
        (["train", "x" * 5000 + ".yaml", "-o", "run"], 2),
        (["generate", "clouds", "--model", "x" * 5000, "-o", "a.mp4", "--frames", "8"], 4),
    ],
)
def test_names_that_no_file_can_have_are_told(
    words: list[str], code: int, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    clip = still(tmp_path, b"x.png")
    monkeypatch.chdir(tmp_path)
    assert main([word.format(clip=clip, vae=vae) for word in words]) == code
    assert capsys.readouterr().err.count("error: ") == 1
