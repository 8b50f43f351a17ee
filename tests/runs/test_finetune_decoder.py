"""`latentvid finetune-decoder` from words to a folder: what is written, what is said, how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.load import load_autoencoder
from latentvid.cli.main import main
from latentvid.core.checkpoints import describe_checkpoint
from latentvid.video.reader import open_video
from tests.training.footage_clips import write_base, write_footage

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--crop 16 --clip-frames 3 --steps 3 --device cpu --set num_clips=4 --set num_validation_clips=1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "footage").mkdir()
    write_footage(home / "footage", 4)
    (home / "footage" / "broken.mp4").write_bytes(b"no video")
    write_base(home / "little")
    return home


def words(home: Path, out: str, more: str = "", footage: str = "footage", vae: str = "little") -> list[str]:
    return f"finetune-decoder {home / footage} -o {home / out} --vae {home / vae} {SMALL} {more}".split()


def test_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(home, "out", "--hold-out 2")) == 0
    said = capsys.readouterr()
    assert "finetuned against frame by frame: psnr" in said.out
    assert "skipped" in said.err
    assert "broken.mp4" in said.err
    assert "image guard" in said.err
    out = home / "out"
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "config.json",
        "delta",
        "README.md",
        "metrics.json",
        "table.md",
        "side_by_side.png",
        "curves.png",
        "report",
    }

    metrics = json.loads((out / "metrics.json").read_text())
    assert [c["file"] for c in metrics["data"]["held_out"]] == ["clip2.mp4", "clip3.mp4"]
    assert [c["file"] for c in metrics["data"]["train"]] == ["clip0.mp4", "clip1.mp4"]
    assert metrics["psnr_gain"] == pytest.approx(
        metrics["held_out"]["finetuned"]["psnr"] - metrics["held_out"]["frame by frame"]["psnr"]
    )
    assert metrics["image_guard"]["holds"]
    assert metrics["has_delta"]

    card = describe_checkpoint(out)
    assert card["license"] == "mit"
    assert card["base_model"] == "little"
    assert "clip3.mp4" in (out / "README.md").read_text()

    clip = open_video(out / "side_by_side.mp4").meta
    assert clip.num_frames == 6
    assert clip.width > 3 * 48
    latents = torch.randn(3, 5, 4, 4)
    streamed = torch.cat(list(load_autoencoder(out).decode(latents.split(2, dim=1))))
    assert streamed.shape == (5, 3, 8, 8)

    assert main(words(home, "out", "--hold-out 2")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(words(home, "out", "--hold-out 2 --resume --json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["held_out"]["finetuned"]["psnr"] == metrics["held_out"]["finetuned"]["psnr"]


def test_interrupted_and_resumed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(record: dict[str, object]) -> str:
        raise KeyboardInterrupt

    every_step = "--set loop.validate_every=2 --set loop.save_every=1"
    with monkeypatch.context() as patched:
        patched.setattr("latentvid.cli.finetune_decoder._validation_line", stop)
        assert main(words(home, "stopped", every_step)) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (home / "stopped" / "metrics.json").exists()
    assert main(words(home, "stopped", f"{every_step} --resume")) == 0
    steps = [
        json.loads(line)["step"]
        for line in (home / "stopped" / "run" / "temporal" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert steps[-1] == 3

    assert main(words(home, "stopped", f"{every_step} --resume --batch 1")) == 2
    assert "options.batch was 2 and is now 1" in capsys.readouterr().err
    assert main(words(home, "stopped", f"{every_step} --resume --hold-out 2")) == 2
    assert "other files to train on: " in capsys.readouterr().err
    assert main(words(home, "stopped", f"{every_step} --resume --steps 4 --set loop.log_every=1")) == 0
    said = capsys.readouterr().err
    assert "loop.steps was 3 and is now 4; the learning rate falls along a cosine" in said
    assert "stage temporal: 4 steps" in said


def test_dry_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(home, "dry", "--dry-run --json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert [c["file"] for c in said["train"]] == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    assert said["skipped"][0]["file"] == "broken.mp4"
    assert said["steps"] == 3
    assert said["step_s"] > 0
    assert said["memory_bytes"] > 0
    assert not (home / "dry").exists()
    assert main(words(home, "dry", "--dry-run")) == 0
    assert "per step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("footage", "vae", "out", "code", "sentence"),
    [
        ("nothing", "little", "new", 3, "no such file"),
        ("footage/broken.mp4", "little", "new", 3, "can be used"),
        ("footage/clip0.mp4", "little", "new", 2, "--val"),
        ("footage", "missing", "new", 4, "missing"),
        ("footage", "little", "footage", 2, "something else"),
    ],
)
def test_refusals(
    footage: str, vae: str, out: str, code: int, sentence: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(home, out, footage=footage, vae=vae)) == code
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""
    assert not (home / "new").exists()


def test_two_processes_train_one_decoder(home: Path) -> None:
    """Under torchrun: everything is written once and whole, by the first of them."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--rdzv_backend=c10d",
    ]
    launch += ["--rdzv_endpoint=localhost:0", "-m", "latentvid.cli.main"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, *words(home, "two", "--hold-out 2 --stages temporal,spatial --json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["image_guard"]["holds"]
    steps = [json.loads(line) for line in (home / "two/run/spatial/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if "loss" in record] == [3]
    assert load_autoencoder(home / "two").num_temporal_parameters
    assert {path.name for path in (home / "two").rglob(".*")} <= {".lock"}
