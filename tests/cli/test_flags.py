"""Flags that change what is made, and that no other test types: each has its effect, or one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.cli.main import VERBS, main
from latentvid.film.folder import RunFolder
from tests.factories import vae_tiny
from tests.film.tiny import tiny_pipeline
from tests.video.clips import numbered, write

TESTS = Path(__file__).resolve().parents[1]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that goes on from clean context, an autoencoder, a clip and a picture."""
    folder = tmp_path_factory.mktemp("flags")
    pipeline = tiny_pipeline()
    pipeline.register_to_config(overlap_rule={"kind": "context", "overlap": 2})
    pipeline.save_pretrained(folder / "model")
    vae_tiny().save_pretrained(folder / "vae")
    write(folder / "clip.mp4", numbered(9, 32, 48), 25)
    Image.new("RGB", (32, 32), (200, 120, 40)).save(folder / "end.png")
    return folder


def call(*words: object, code: int = 0) -> str:
    """Run a verb on the CPU and return all that it says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main([str(word) for word in words]) == code, said.getvalue()
    return said.getvalue()


def test_every_flag_is_typed_by_some_test() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    typed = set(FLAG.findall(text))
    verbs = [[verb] for verb in VERBS if verb != "evaluate"] + [["evaluate", "reconstruction"]]
    for verb in verbs:
        offered = set(FLAG.findall(call(*verb, "--help").split("Options:")[1]))
        assert offered <= typed | {"--help"}, f"{verb}: {sorted(offered - typed)}"


def test_flags_of_a_film(place: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text("prompts: {0-5: clouds, 6-: sea at night}\n")
    film = tmp_path / "film.mp4"
    model = ["--model", place / "model", "--device", "cpu", "--steps", 1]
    call(
        "generate", "-o", film, *model, "--frames", 14, "--prompts", tmp_path / "prompts.yaml", "--negative", "sea",
        "--guidance", 2.5, "--solver", "euler", "--overlap", 3, "--crf", 30, "--size", "32x48",
        "--end-image", place / "end.png",
    )  # fmt: skip
    settings: Any = RunFolder.open(film).settings
    assert (settings.negative_prompt, settings.guidance_scale, settings.solver) == ("sea", 2.5, "euler")
    assert (settings.rule.overlap, settings.crf, settings.width, settings.height) == (3, 30, 32, 48)
    assert settings.prompts.at(7) == "sea at night"
    assert settings.end_image.path == str(place / "end.png")
    again = ["generate", "clouds", "-o", film, *model, "--frames", 4]
    assert "exists" in call(*again, "--discard-run", code=2)
    call(*again, "--discard-run", "--overwrite")
    assert not (tmp_path / "film.run").exists()
    assert "is not known" in call("generate", "x", "-o", tmp_path / "b.mp4", *model, "--solver", "magic", code=2)


def test_networks_are_compiled_or_it_is_said_why_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    words = ("generate", "x", "-o", tmp_path / "a.mp4", "--model", place / "model", "--device", "cpu", "--frames", 2)
    assert "needs a C++ compiler" in call(*words, "--compile", code=5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--retime", "none", "--hand-over", 0, "--source-frames", "lossless"), ("none", 0, "lossless", False)),
        (("--retime", "repeat", "--source-frames", "reencode"), ("repeat", 25, "reencode", True)),
    ],
)
def test_flags_of_an_extension(
    place: Path, tmp_path: Path, flags: tuple[object, ...], expected: tuple[object, ...]
) -> None:
    film = tmp_path / "longer.mp4"
    model = ["--model", place / "model", "--device", "cpu", "--steps", 1]
    call("extend", place / "clip.mp4", "-o", film, *model, "--frames", 4, *flags)
    clip: Any = RunFolder.open(film).settings.clip
    assert (clip.retime, clip.hand_over_frames, clip.how, clip.is_retimed) == expected


def test_flags_of_encoding(place: Path, tmp_path: Path) -> None:
    vae = ["--vae", place / "vae", "--device", "cpu"]
    call("encode", place / "clip.mp4", "-o", tmp_path / "a.safetensors", *vae, "--half", "--deinterlace")
    assert LatentFile(tmp_path / "a.safetensors").precision == "F16"
    footage = tmp_path / "footage"
    footage.mkdir()
    whole = (place / "clip.mp4").read_bytes()
    (footage / "cut.mp4").write_bytes(whole)
    Image.new("RGB", (16, 16)).save(footage / "still.png")
    found = json.loads(call("encode", footage, "-o", tmp_path / "b", *vae, "--no-stills", "--json", "--quiet"))
    assert found["counts"] == {"encoded": 1}
    found = json.loads(call("encode", footage, "-o", tmp_path / "c", *vae, "--stills", "--json", "--quiet"))
    assert found["counts"] == {"encoded": 2}
    assert "--ray-workers needs --ray" in call(
        "encode", footage, "-o", tmp_path / "d", *vae, "--ray-workers", 2, code=2
    )


def test_clips_that_break_off_are_used_if_asked(place: Path, tmp_path: Path) -> None:
    video = write(tmp_path / "whole.mkv", numbered(40, 64, 96), 25)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    words = ["encode", cut, "-o", tmp_path / "cut.safetensors", "--vae", place / "vae", "--device", "cpu"]
    assert "allow truncated" in call(*words, code=3)
    assert "cut.safetensors" in call(*words, "--allow-truncated")
    assert 0 < LatentFile(tmp_path / "cut.safetensors").num_frames < 40


def test_flags_of_measuring(place: Path, tmp_path: Path) -> None:
    found = json.loads(call("drift", place / "clip.mp4", "--every", 3, "--json", "--quiet"))
    assert "seam_ratio" in json.dumps(found)
    words = ["evaluate", "reconstruction", place / "clip.mp4", "--vae", place / "vae", "--device", "cpu", "--quiet"]
    small = json.loads(call(*words, "--size", 16, "--frames", 2, "--json", "-"))
    assert "psnr" in json.dumps(small)
    for flag in ("--lpips", "--fvd-model"):
        assert "nowhere" in call(*words, flag, tmp_path / "nowhere.pt", code=4)


def test_flags_of_a_finetuning(place: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kind: finetune\nnum_clips: 4\nloop: {steps: 3}\n")
    words = [
        "finetune-decoder", place / "clip.mp4", write(tmp_path / "held.mp4", numbered(12, 32, 48), 25), "-o",
        tmp_path / "out", "--vae", place / "vae", "--device", "cpu", "--crop", 16, "--clip-frames", 4, "--batch", 1,
        "--hold-out", 1, "--config", tmp_path / "config.yaml", "--eval-frames", 2, "--dry-run", "--json", "--quiet",
    ]  # fmt: skip
    temporal, both = json.loads(call(*words)), json.loads(call(*words, "--train-spatial"))
    assert (temporal["steps"], both["steps"]) == (3, 3)
    assert both["disk_bytes"] > temporal["disk_bytes"]  # the optimizer state of more weights
    assert "nowhere" in call(*words, "--lpips-trunk", tmp_path / "nowhere.safetensors", code=4)
