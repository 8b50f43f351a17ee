"""Outputs of single verbs: what appears while they are made stays, and encoded folders hold no way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentvid.autoencoders.batch import encode_files
from latentvid.cli.main import main
from latentvid.core.errors import UsageError
from latentvid.core.files import atomic_path
from latentvid.data.latent_shards import ShardWriter
from latentvid.evaluation.report import Report
from latentvid.metrics import drift
from latentvid.video.sheet import save_contact_sheet
from latentvid.video.writer import VideoWriter


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", fps=12, width=32, height=32) as writer:
        writer.write(torch.zeros(3, 3, 32, 32))
    return tmp_path / "clip.mp4"


def write_video(path: Path) -> None:
    with VideoWriter(path, fps=12, width=32, height=32) as writer:
        writer.write(torch.zeros(3, 3, 32, 32))


def write_sheet(path: Path) -> None:
    save_contact_sheet(path, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2, 1, labels=[0, 1], overwrite=False)


def write_report(path: Path) -> None:
    Report([], {}).write_json(path, overwrite=False)


def write_shard(path: Path) -> None:
    with ShardWriter(path.parent, prefix=path.stem.removesuffix("-00000")) as writer:
        writer.add("key", torch.zeros(1, 1, 2, 2), {})


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.mp4", write_video), ("a.png", write_sheet), ("a.json", write_report), ("a-00000.tar", write_shard)],
)
def test_what_appears_while_an_output_is_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    target = tmp_path / name
    monkeypatch.setattr("latentvid.core.files.sync", lambda path: target.write_bytes(b"theirs"))
    with pytest.raises(UsageError, match="put there meanwhile|holds other latents"):
        write(target)
    assert target.read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_verb_does_not_replace_what_appeared_unless_told(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, real = clip.with_name("drift.png"), drift.line_chart

    def appear(*given: Any, **more: Any) -> Image.Image:
        picture.write_bytes(b"theirs")
        return real(*given, **more)

    monkeypatch.setattr(drift, "line_chart", appear)
    assert main(["drift", str(clip), "--png", str(picture), "-q"]) == 2
    assert "drift.png exists" in capsys.readouterr().err
    assert picture.read_bytes() == b"theirs"
    assert main(["drift", str(clip), "--png", str(picture), "-q", "--overwrite"]) == 0
    assert picture.read_bytes() != b"theirs"


def test_nothing_is_encoded_through_a_link_in_the_output(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "sub" / "a.png")
    for folder in ("elsewhere", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    assert main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--vae", "none"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_clip_that_another_process_encodes_does_not_stop_the_batch(clip: Path, tmp_path: Path) -> None:
    class Nothing:
        def latent_space(self) -> str:
            return ""

    jobs = [(clip, tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    with atomic_path(jobs[0][1]):
        tried = []

        def encode(autoencoder: object, source: Path, target: Path, **_: Any) -> dict[str, Any]:
            tried.append(target.name)
            with atomic_path(target, overwrite=False) as beside:
                beside.write_bytes(b"latents")
            return {"source": str(source)}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("latentvid.autoencoders.batch.encode_file", encode)
            found = list(encode_files(Nothing(), jobs))  # type: ignore[arg-type]
    assert [result["status"] for result in found] == ["failed", "encoded"]
    assert "another process is writing it" in found[0]["error"]
