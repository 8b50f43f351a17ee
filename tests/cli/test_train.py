"""`train`, from a config to what was trained, on a tiny network and a procedural world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers import AutoencoderKL

from latentvid.cli.main import main
from latentvid.pipeline import LatentVideoPipeline
from tests.factories import vae_kl

ROOT = Path(__file__).resolve().parents[2]
AUTOENCODER = """
kind: autoencoder
source: {kind: world, name: sky, num_clips: 6, num_frames: 1, size: 16}
network: {block_out_channels: [8, 16], latent_channels: 3, norm_num_groups: 4}
options: {batch: 2, crop: 16, validation_clips: 2}
loop: {steps: 4, lr: 1e-3, warmup: 1, log_every: 2, save_every: 3, validate_every: 4}
"""
DIFFUSION = """
kind: diffusion
vae: VAE
videos: {kind: world, name: sky, num_clips: 4, num_frames: 3, size: 16}
images: {kind: world, name: sky, num_clips: 4, num_frames: 1, size: 16}
unet: {block_out_channels: [8, 16], attention: [false, true], num_heads: 2, norm_num_groups: 4}
text: {width: 16, num_layers: 1, num_heads: 2}
options: {num_frames: 3, video_batch: 2, image_batch: 2, max_context: 2, validation_clips: 1}
loop: {steps: 3, lr: 1e-3, warmup: 1, log_every: 1, validate_every: 3}
"""


@pytest.fixture(autouse=True)
def _own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "autoencoder.yaml"
    path.write_text(AUTOENCODER, encoding="utf-8")
    return path


def train(config: Path, *words: str) -> int:
    return main(["train", str(config), "-o", str(config.parent / "run"), "--device", "cpu", *words])


def test_an_autoencoder_from_a_config(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "--set", "loop.steps=5") == 0
    run, said = config.parent / "run", capsys.readouterr()
    assert "export:" in said.out
    assert "training: 5/5 steps" in said.err
    assert "step 4: psnr" in said.err
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in log if "loss" in record] == [2, 4, 5]
    assert AutoencoderKL.from_pretrained(run / "export").config.latent_channels == 3
    assert train(config) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert train(config, "--set", "loop.steps=6", "--resume", "--json", "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    facts = json.loads(said.out)
    assert facts["steps"] == facts["last"]["step"] == 6
    assert facts["validation"]["psnr"] > 0


def test_what_may_change_when_a_run_goes_on(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, "-q") == 0
    run = config.parent / "run"
    capsys.readouterr()
    lr = ("--set", "loop.lr=0.5", "--set", "source.num_clips=7", "--resume")
    refused = (
        "begun with other settings: source.num_clips was 6 and is now 7, loop.lr was 0.001 and is now 0.5; resume it"
    )
    assert train(config, *lr) == 2
    assert refused in capsys.readouterr().err
    assert train(config, "--set", "loop.steps=3", "--resume") == 2
    assert "has taken 4 steps; loop.steps can be 4 or more, not 3" in capsys.readouterr().err
    harmless = ("--set", "loop.log_every=1", "--set", "loop.save_every=1", "--resume")
    assert train(config, *harmless, "--set", "loop.steps=5") == 0
    said = capsys.readouterr().err
    assert (
        "loop.steps was 4 and is now 5; the learning rate falls along a cosine to the last step, so from step 4" in said
    )
    assert "training: 5/5 steps" in said
    (run / "recipe.json").unlink()  # as runs were before
    assert train(config, "--set", "loop.lr=0.5", "--set", "loop.steps=5", "--resume") == 2
    assert "loop.lr was 0.001 and is now 0.5;" in capsys.readouterr().err
    assert train(config, "--set", "loop.steps=6", "--resume") == 0
    assert json.loads((run / "recipe.json").read_text())["loop"]["steps"] == 6
    (run / "recipe.json").write_text("[]")
    assert train(config, "--set", "loop.steps=6", "--resume") == 4
    own = config.parent / "own"
    own.mkdir()
    (own / "recipe.json").write_text('"of pancakes"')
    assert main(["train", str(config), "-o", str(own), "--device", "cpu"]) == 2
    assert (own / "recipe.json").read_text() == '"of pancakes"'


def test_a_diffusion_model_from_a_config_and_one_to_go_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae_kl().save_pretrained(tmp_path / "vae")
    config = tmp_path / "diffusion.yaml"
    config.write_text(DIFFUSION.replace("VAE", str(tmp_path / "vae")), encoding="utf-8")
    assert train(config) == 0
    assert "preparing: 4/4 clips" in capsys.readouterr().err
    export = tmp_path / "run" / "export"
    first = LatentVideoPipeline.from_pretrained(export)
    assert first("clouds", num_inference_steps=1, output_type="pt").frames.shape == (1, 3, 3, 16, 16)
    cache = next((tmp_path / "run" / "cache").glob("videos-*/shard-00000.safetensors"))
    before = cache.stat().st_mtime_ns
    # The caches of the first run serve the second.
    words = ["--set", f"init={export}", "--set", f"cache={tmp_path / 'run' / 'cache'}", "--set", "loop.steps=1"]
    assert main(["train", str(config), "-o", str(tmp_path / "more"), "--device", "cpu", *words]) == 0
    assert cache.stat().st_mtime_ns == before
    more = LatentVideoPipeline.from_pretrained(tmp_path / "more" / "export")
    assert more.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_a_dry_run_says_what_it_would_train_and_does_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusion = config.with_name("diffusion.yaml")
    vae_kl().save_pretrained(config.parent / "vae")
    diffusion.write_text(DIFFUSION.replace("VAE", str(config.parent / "vae")), encoding="utf-8")
    assert train(config, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "block_out_channels" in said
    assert "steps:" in said
    before = sorted(config.parent.iterdir())
    assert train(diffusion, "--dry-run", "--json", "--set", "loop.lr=0.5", "--set", "options.train_text=false") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["steps"], facts["batches_per_step"]) == ("diffusion", 3, 1)
    assert facts["recipe"]["loop"]["lr"] == 0.5
    assert facts["parameters"]["vae"] == sum(p.numel() for p in vae_kl().parameters())
    assert facts["trained_parameters"] == facts["parameters"]["unet"] > 0
    assert facts["parameters"]["text_encoder"] > 0
    assert sorted(config.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--set", "loop.stps=1"], 2, "config.loop.stps is not known; did you mean 'steps'"),
        (["--set", "loop.steps=0"], 2, "config.loop.steps"),
        (["--set", "options.validation_clips=6"], 2, "leave none to train on"),
        (["--set", "options.crop=64"], 2, "crops of 64 pixels do not fit"),
        (["--set", "loop.mixed_precision=fp16"], 2, "fp16"),
    ],
)
def test_configs_that_cannot_be_are_one_line(
    words: list[str], code: int, sentence: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, "--quiet", *words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("kind: autoencoderr", 2, "did you mean 'autoencoder'"),
        ("steps: 3", 2, "is no recipe"),
        ("kind: diffusion\nvae: nowhere", 2, "name videos, images, or both"),
        ("kind: diffusion\nvae: nowhere\nimages: {kind: world}", 4, "'nowhere' is neither a folder"),
    ],
)
def test_files_that_are_no_recipe_are_one_line(
    text: str, code: int, sentence: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text, encoding="utf-8")
    assert train(config, "--quiet") == code
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_the_state_and_is_130(number: int, config: Path) -> None:
    run = config.parent / "run"
    words = ["train", str(config), "-o", str(run), "--device", "cpu", "--set", "loop.steps=100000"]
    command = [
        sys.executable,
        "-m",
        "latentvid",
        *words,
        "--set",
        "loop.save_every=100000",
        "--set",
        "loop.log_every=1",
    ]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - background processes ignore it
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (run / "log.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert said.endswith("interrupted\n")
    assert len(list((run / "state").glob("step-*"))) == 1
