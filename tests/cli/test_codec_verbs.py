"""`encode` and `decode` as a user calls them, through a small autoencoder saved as a folder."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from latentvid.autoencoders import load
from latentvid.cli.main import main
from latentvid.data.latent_shards import LatentShards
from latentvid.video.reader import open_video
from latentvid.video.sound import Sound
from tests.factories import vae_tiny
from tests.video.clips import numbered, write
from tests.video.test_remux import sound


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film that sounds, one below that does not, a still, a file that is none, and the autoencoder."""
    folder = tmp_path_factory.mktemp("footage")
    music = sound(folder / "music.m4a", 2)
    write(folder / "in" / "film.mp4", numbered(9, 32, 48), 25, sound=Sound(music, Fraction(0), Fraction(9, 25)))
    write(folder / "in" / "deep" / "silent.mkv", numbered(4, 32, 48), 25, sample_aspect_ratio=Fraction(4, 3))
    Image.fromarray(numbered(1, 32, 48)[0].permute(1, 2, 0).numpy()).save(folder / "in" / "still.png")
    (folder / "in" / "film.txt").write_text("numbers on a moving ground\n")
    (folder / "bad").mkdir()
    (folder / "bad" / "broken.mp4").write_bytes(b"no video")
    vae_tiny().save_pretrained(folder / "vae")
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_a_folder_and_back(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = ("--vae", footage / "vae", "--device", "cpu")
    words = ("encode", footage / "in", footage / "bad", "-o", tmp_path / "latents", *vae)
    out, err = call(capsys, *words, "--json", "--pack", tmp_path / "shards", "--pack-frames", 4, code=6)
    found = json.loads(out)
    assert found["counts"] == {"encoded": 3, "failed": 1}
    assert "1 of 4 clips failed" in err
    assert err.count("pixels are not square") == 1
    names = sorted(p.relative_to(tmp_path / "latents").as_posix() for p in (tmp_path / "latents").rglob("*.*"))
    assert names == [f"{name}.safetensors" for name in ("deep/silent.mkv", "film.mp4", "still.png")]
    shards = LatentShards(tmp_path / "shards")
    assert sorted(shards.about(k)["name"] for k in range(len(shards))) == sorted([names[0], names[1], names[1]])
    assert sum(len(captions) for captions in shards.captions) == 2

    table, _ = call(capsys, *words, "-q", code=6)
    assert table.splitlines()[0].split()[:3] == ["clip", "status", "frames"]
    assert table.splitlines()[-1] == "3 skipped, 1 failed"
    assert "no known video format" in table or "not a video" in table

    film, silent, still = (tmp_path / "latents" / names[k] for k in (1, 0, 2))
    out, _ = call(capsys, "decode", film, "-o", tmp_path / "film.mp4", *vae, "--audio", "source", "--json")
    assert json.loads(out)["has_audio"]
    assert open_video(tmp_path / "film.mp4").meta.has_audio
    _, err = call(capsys, "decode", silent, "-o", tmp_path / "silent.mp4", *vae, "--audio", "source", "-q")
    assert "holds no sound" in err
    assert open_video(tmp_path / "silent.mp4").meta.sample_aspect_ratio == Fraction(4, 3)
    call(capsys, "decode", still, "-o", tmp_path / "still.png", *vae)
    assert next(open_video(tmp_path / "still.png").frames()).pixels.shape == torch.Size([3, 32, 48])
    _, err = call(capsys, "decode", still, "-o", tmp_path / "b.png", *vae, "--audio", footage / "music.m4a", code=2)
    assert "hold no sound" in err
    assert not (tmp_path / "b.png").exists()


def test_a_clip_that_is_missing_costs_the_others_nothing(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = ("--vae", footage / "vae", "--device", "cpu", "--max-frames", 1)
    film, gone, empty = footage / "in" / "film.mp4", tmp_path / "gone.mp4", tmp_path / "empty"
    empty.mkdir()
    words = ("encode", gone, film, footage / "bad" / "broken.mp4", empty, "-o", tmp_path / "latents", *vae)
    out, err = call(capsys, *words, "--json", code=6)
    found = json.loads(out)
    assert {clip["source"]: clip["status"] for clip in found["clips"]} == {
        str(gone): "failed", str(empty): "failed", str(film): "encoded", str(footage / "bad" / "broken.mp4"): "failed",
    }  # fmt: skip
    assert "3 of 4 clips failed, the others are done" in err
    assert f"failed: {gone}: no such file" in err
    assert (tmp_path / "latents" / "film.mp4.safetensors").is_file()
    table, _ = call(capsys, *words, "-q", code=6)
    assert table.splitlines()[-1] == "3 failed, 1 skipped"
    call(capsys, "encode", gone, empty, "-o", tmp_path / "none", *vae, code=3)
    _, err = call(capsys, "encode", gone, film, "-o", tmp_path / "a.safetensors", *vae, code=2)
    assert "one file for 2 clips" in err


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("b.mp4", "a video"),
        ("b.MKV", "a video"),
        ("b.png", "a picture"),
        ("b.pt", "a file"),
        ("b.SAFETENSORS", "a file"),
    ],
)
def test_no_folder_is_given_the_name_of_a_file(
    name: str, kind: str, footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, target = footage / "in" / "film.mp4", tmp_path / name
    for words in (
        ("encode", film, "-o", target),
        ("encode", film, "-o", tmp_path / "latents", "--pack", target),
        ("finetune-decoder", film, "-o", target),
        ("train", tmp_path / "none.yaml", "-o", target),
    ):
        _, err = call(capsys, *words, code=2)
        assert f"{target} looks like {kind}" in err
        assert not list(tmp_path.iterdir())
    _, err = call(capsys, "encode", film, "-o", target, code=2)
    assert "latents are .safetensors" in err
    target.mkdir()
    call(capsys, "encode", film, "-o", target, "--vae", footage / "vae", "--device", "cpu", "--max-frames", 1)
    assert (target / "film.mp4.safetensors").is_file()


def test_shares_meet_nowhere_and_leave_nothing(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("encode", footage / "in", "-o", tmp_path, "--vae", footage / "vae", "--device", "cpu", "--max-frames", 1)
    done = []
    for share in ("1/2", "2/2"):
        out, _ = call(capsys, *words, "--shard", share, "--json", "-q")
        done += [clip["source"] for clip in json.loads(out)["clips"] if clip["status"] == "encoded"]
    assert len(done) == len(set(done)) == 3
    out, _ = call(capsys, *words, "--no-stills", "--json", "-q")
    assert json.loads(out)["counts"] == {"skipped": 2}


def test_tiles_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    vae_tiny().save_pretrained(tmp_path / "vae")
    write(tmp_path / "wide.mp4", numbered(2, 256, 256), 25)
    vae = ("--vae", tmp_path / "vae", "--device", "cpu", "-q")
    call(capsys, "encode", tmp_path / "wide.mp4", "-o", tmp_path / "wide.safetensors", *vae)
    words = ("decode", tmp_path / "wide.safetensors", *vae)
    assert "tiles" not in call(capsys, *words, "-o", tmp_path / "whole.mp4")[1]
    whole = load.load_autoencoder

    def tight(*args: object, **kwargs: object) -> object:
        network = whole(*args, **kwargs)  # type: ignore[arg-type]
        network.max_memory = 9_000_000  # one frame needs 12.6 MB
        return network

    monkeypatch.setattr(load, "load_autoencoder", tight)
    assert "tiles" in call(capsys, *words, "-o", tmp_path / "tiled.mp4")[1]


def test_numbered_pictures_at_a_rate(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shot = tmp_path / "in" / "shot"
    shot.mkdir(parents=True)
    for number, picture in enumerate(numbered(6, 32, 48)):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(shot / f"f{number:03}.png")
    vae = ("--vae", footage / "vae", "--device", "cpu")
    target = tmp_path / "a.safetensors"
    for clip in (shot, shot / "f%03d.png"):
        out, _ = call(capsys, "encode", clip, "-o", target, *vae, "--fps", "24000/1001", "--json", "--overwrite")
        assert json.loads(out)["clips"][0]["num_frames"] == 6
    _, err = call(capsys, "decode", target, "-o", tmp_path / "a.mp4", *vae, "--audio", "source")
    assert "holds no sound" in err
    meta = open_video(tmp_path / "a.mp4").meta
    assert (meta.fps, meta.num_frames) == (Fraction(24000, 1001), 6)
    out, _ = call(capsys, "encode", tmp_path / "in", "-o", tmp_path / "all", *vae, "--fps", 12, "--json")
    assert (tmp_path / "all" / "shot.safetensors").is_file()
    again, _ = call(capsys, "encode", tmp_path / "in", "-o", tmp_path / "all", *vae, "--fps", 12, "--json")
    assert json.loads(again)["counts"] == {"skipped": 1}
    _, err = call(capsys, "encode", tmp_path / "in", "-o", tmp_path / "all", *vae, "--fps", 13, code=2)
    assert "12 frames per second" in err
    out, err = call(capsys, "encode", shot, "-o", tmp_path / "stills", *vae, "--json")
    assert json.loads(out)["counts"] == {"encoded": 6}
    assert "--fps makes them one clip" in err
    out, _ = call(capsys, "inspect", shot, "--fps", 12, "--json")
    assert (json.loads(out)["num_frames"], json.loads(out)["fps"]) == (6, "12/1")
    out, _ = call(capsys, "drift", shot, "--fps", 12, "--json")
    for words in (("inspect", shot), ("drift", shot), ("evaluate", "reconstruction", shot, *vae)):
        _, err = call(capsys, *words, code=2)
        assert "--fps" in err
        assert len(err.strip().splitlines()) == 1
