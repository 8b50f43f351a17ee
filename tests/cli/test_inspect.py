"""`inspect` and `models`: every kind of thing by its facts, and every broken one by one sentence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentvid.cli.main import main


@pytest.fixture(autouse=True)
def _own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


def inspect(thing: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["inspect", str(thing), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    return json.loads(said.out)


def test_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"latents": np.zeros((4, 3, 2, 2), np.float32)}, path, {"fps": "25/1", "times": "[0, 1]", "odd": "[x"})
    facts = inspect(path, capsys)
    assert facts["type"] == "latents"
    assert facts["tensors"] == {"latents": ["F32", 4, 3, 2, 2]}
    assert facts["metadata"] == {"fps": "25/1", "times": [0, 1], "odd": "[x"}


def test_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": np.zeros((4, 3), np.float32)}, tmp_path / "a.safetensors")
    facts = inspect(tmp_path / "a.safetensors", capsys)
    assert (facts["type"], facts["num_parameters"], facts["num_tensors"]) == ("weights", 12, 1)


def test_a_config_with_what_it_extends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text("lr: 1e-4\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("extends: base.yaml\nsteps: 3\n", encoding="utf-8")
    assert inspect(tmp_path / "run.yaml", capsys)["settings"] == {"lr": 1e-4, "steps": 3}


def test_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"seed": 3, "type": "generate"}', encoding="utf-8")
    assert inspect(tmp_path, capsys) == {"type": "run", "path": str(tmp_path), "seed": 3}


def test_a_checkpoint_by_path_and_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}', encoding="utf-8")
    monkeypatch.setenv("LATENTVID_CHECKPOINTS", str(tmp_path))
    assert inspect(tmp_path / "codec", capsys) == inspect(Path("codec"), capsys)


def test_a_real_clip(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(assets / "data" / "clips" / "bikes.mp4", capsys)
    assert (facts["width"], facts["height"], facts["fps"], facts["num_frames"]) == (640, 272, "25/1", 250)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.mp4", b"", 3),
        ("a.mp4", b"\x00garbage" * 100, 3),
        ("a.safetensors", b"garbage", 4),
        ("a.yaml", b"a: [", 2),
        ("a.yaml", b"\xff\xfe", 2),
        ("folder/text", b"x", 4),
        ("folder/run.json", b"{", 3),
        ("folder/run.json", b"[]", 3),
        ("folder/model_index.json", b"[]", 4),
    ],
)
def test_broken_things_are_one_sentence(
    name: str, content: bytes, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert main(["inspect", str(tmp_path / Path(name).parts[0])]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_models_lists_what_is_there_and_survives_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTVID_CHECKPOINTS", str(tmp_path))
    assert main(["models"]) == 0
    assert "no checkpoints in" in capsys.readouterr().out
    for name, config in (("codec", '{"_class_name": "AutoencoderTiny"}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config, encoding="utf-8")
    (tmp_path / "codec" / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert main(["models"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[1].split()[:2] == ["broken", "damaged"]
    assert listed[2].split()[:2] == ["codec", "AutoencoderTiny"]
    assert listed[2].endswith("mit")
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in found] == ["broken", "codec"]
    assert "error" in found[0]
