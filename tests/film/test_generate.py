"""Films as files: exact beginnings, runs that survive kills, outputs that are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.files import locked, read_json, sha256_of
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.make import Progress
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter
from tests.film.tiny import STEPS, hashes

ROOT = Path(__file__).resolve().parents[2]


class Stop(Exception):
    pass


def stop_in(window: int) -> Callable[[Progress], None]:
    def hook(at: Progress) -> None:
        if at.window == window and at.call == 1:
            raise Stop

    return hook


def frames_of(path: Path) -> torch.Tensor:
    with open_video(path) as reader:
        return torch.stack([frame.pixels for frame in reader.frames()])


def test_a_film_begins_like_any_longer_one(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    short = generate_film(pipeline, "clouds", tmp_path / "short.mp4", num_frames=17, **STEPS)
    generate_film(pipeline, "clouds", tmp_path / "long.mp4", num_frames=26, **STEPS)
    assert (short.num_windows, short.num_frames) == (3, 17)
    for pattern in ("windows/*.mp4", "windows/*.safetensors"):
        first = hashes(tmp_path / "short.run", pattern)
        other = hashes(tmp_path / "long.run", pattern)
        assert list(first)[:2] == list(other)[:2]
        assert [first[name] for name in list(first)[:2]] == [other[name] for name in list(first)[:2]]
    shorter, longer = frames_of(tmp_path / "short.mp4"), frames_of(tmp_path / "long.mp4")
    assert (len(shorter), len(longer)) == (17, 26)
    assert torch.equal(shorter[:14], longer[:14])


def test_prompts_are_embedded_once_per_film(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = type(pipeline.text_encoder).forward

    def counted(self: object, *args: object, **kwargs: object) -> object:
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline.text_encoder), "forward", counted)
    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=26, guidance_scale=2.0, **STEPS)
    assert len(calls) == 2  # the prompt and the empty one, for five windows
    calls.clear()
    list(pipeline.stream("clouds", num_frames=26, guidance_scale=2.0, **STEPS))
    assert len(calls) == 2


@pytest.mark.parametrize("rule", [{"kind": "context", "overlap": 3}, {"kind": "reuse", "overlap": 2}])
def test_a_call_a_stream_and_a_film_are_the_same(
    pipeline: LatentVideoPipeline, tmp_path: Path, rule: dict[str, object]
) -> None:
    """Four windows, with a limit so narrow that the drift guard has to correct."""
    film = tmp_path / "film.gif"  # its segments keep every bit of the frames
    wanted = {"num_frames": 23, "rule": rule, "drift_limit": 0.001, **STEPS}
    generate_film(pipeline, "clouds", film, seed=5, **wanted)
    run = RunFolder.open(film)
    assert run.record.num_windows == 4
    assert all(run.window(index).is_corrected for index in (1, 2, 3))
    stored = torch.cat([LatentFile(run.latents(index)).read() for index in range(4)], dim=1)
    segments = torch.cat([frames_of(run.segment(index)) for index in range(4)])
    called = pipeline("clouds", generator=5, output_type="latent", **wanted).frames
    assert torch.equal(called[0], stored)
    both = pipeline(["sea at night", "clouds"], generator=[8, 5], output_type="latent", **wanted).frames
    torch.testing.assert_close(both[1], stored, atol=1e-5, rtol=1e-4)
    streamed = torch.cat(list(pipeline.stream("clouds", generator=5, **wanted))).cpu()
    pixels = pipeline("clouds", generator=5, output_type="pt", **wanted).frames[0]
    assert torch.equal(streamed.add(1).div(2).clamp(0, 1), pixels)
    assert torch.equal(streamed.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8), segments)
    free = pipeline("clouds", generator=5, output_type="latent", drift_guard="off", **wanted).frames
    assert not torch.equal(free, called)


def test_a_run_goes_on_with_the_spacing_of_steps_that_it_was_begun_with(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs from before spacing was recorded were even; every other run names it if it is not."""
    monkeypatch.setattr(pipeline, "_internal_dict", pipeline.config)  # put back afterwards
    for begun, loaded in (("even", "scheduler"), ("scheduler", "scheduler"), ("scheduler", "even")):
        run = tmp_path / f"{begun}-{loaded}.run"
        pipeline.register_to_config(spacing=begun)
        with pytest.raises(Stop):
            generate_film(pipeline, "clouds", run.with_suffix(".mp4"), num_frames=14, on_progress=stop_in(1), **STEPS)
        weights = read_json(run / "run.json")["weights"]
        assert weights.get("spacing", "even") == begun
        pipeline.register_to_config(spacing=loaded)
        if begun == "scheduler" != loaded:
            with pytest.raises(CheckpointError, match="spacing"):
                resume_film(run, pipeline=pipeline)
        else:
            resume_film(run, pipeline=pipeline)
            assert pipeline.config.spacing == begun


@pytest.mark.parametrize(
    "rule", [{"kind": "context", "overlap": 3}, {"kind": "reuse", "order": "mirror", "overlap": 2}]
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    pipeline: LatentVideoPipeline, tmp_path: Path, rule: dict[str, object]
) -> None:
    wanted = {"num_frames": 20, "rule": rule, "solver": "ancestral", **STEPS}
    generate_film(pipeline, "clouds", tmp_path / "whole.mp4", **wanted)
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", on_progress=stop_in(2), **wanted)
    assert not (tmp_path / "film.mp4").exists()
    report = resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert report.resumed_at == 2
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    assert hashes(tmp_path / "film.run", "drift.json") == hashes(tmp_path / "whole.run", "drift.json")
    assert len(list((tmp_path / "film.run" / "carry").iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_again_and_again(model: Path, tmp_path: Path) -> None:
    generate_film(LatentVideoPipeline.from_pretrained(model), "clouds", tmp_path / "whole.mp4", num_frames=30, **STEPS)
    run = subprocess.run(
        [sys.executable, "-m", "tests.film.killer", str(model), str(tmp_path / "film.mp4"), "4"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 4
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "film.run", "whole.mp4", "whole.run"]
    assert not [p for p in (tmp_path / "film.run").rglob(".*") if p.name != ".lock"]


def test_what_is_there_is_not_touched(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    generate_film(pipeline, "clouds", out, num_frames=8, **STEPS)
    before = hashes(tmp_path, "film.mp4")
    with pytest.raises(UsageError, match="--overwrite"):
        generate_film(pipeline, "sea", out, num_frames=8, **STEPS)
    out.unlink()
    with pytest.raises(UsageError, match="latentvid resume"):
        generate_film(pipeline, "sea", out, num_frames=8, **STEPS)
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert hashes(tmp_path, "film.mp4") == before
    generate_film(pipeline, "sea", out, num_frames=8, overwrite=True, seed=1, **STEPS)
    assert hashes(tmp_path, "film.mp4") != before
    (tmp_path / "other.run").mkdir()
    (tmp_path / "other.run" / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="no run folder"):
        generate_film(pipeline, "sea", tmp_path / "other.mp4", num_frames=8, overwrite=True, **STEPS)
    assert (tmp_path / "other.run" / "diary.txt").read_text() == "mine"


def test_a_film_that_took_the_place_meanwhile_stays(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", out, num_frames=14, on_progress=stop_in(1), **STEPS)
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="move it away"):
        resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert out.read_bytes() == b"mine"


def test_damage_and_other_models_are_refused(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=20, on_progress=stop_in(2), **STEPS)
    run = tmp_path / "film.run"
    weight = next(pipeline.unet.parameters())
    kept = weight.data.clone()
    try:
        weight.data += 1
        with pytest.raises(CheckpointError, match="unet changed"):
            resume_film(run, pipeline=pipeline)
    finally:
        weight.data.copy_(kept)
    segment = run / "windows" / "000000.mp4"
    bytes_before = segment.read_bytes()
    segment.write_bytes(bytes_before[:-1] + b"x")
    with pytest.raises(CheckpointError, match="000000.mp4"):
        resume_film(run, pipeline=pipeline)
    segment.write_bytes(bytes_before)
    carry = run / "carry" / "000002.safetensors"
    carry.write_bytes(carry.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="carry"):
        resume_film(run, pipeline=pipeline)
    (run / "run.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="damaged"):
        RunFolder.open(run)


def test_a_run_is_worked_on_by_one(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=8, **STEPS)
    run = RunFolder.open(tmp_path / "film.mp4")
    with locked(run.path), pytest.raises(ResourceError, match="another process"):
        resume_film(run.path, pipeline=pipeline)


def test_a_full_disk_leaves_a_run_that_goes_on(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_film(pipeline, "clouds", tmp_path / "whole.mp4", num_frames=14, **STEPS)
    write = VideoWriter.write

    def full(self: VideoWriter, *frames: object) -> None:
        if self._path.name == "000001.mp4":
            raise ResourceError("the disk is full.")
        write(self, *frames)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", full)
        with pytest.raises(ResourceError, match=r"latentvid resume .*film\.run"):
            generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=14, **STEPS)
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")


@pytest.mark.parametrize(("name", "num_frames"), [("film.gif", 10), ("film.mov", 10), ("film.png", 1)])
def test_other_kinds_of_files(pipeline: LatentVideoPipeline, tmp_path: Path, name: str, num_frames: int) -> None:
    sheet = tmp_path / "sheet.png"
    report = generate_film(
        pipeline, "clouds", tmp_path / name, num_frames=num_frames, keep_run=False, contact_sheet=sheet, **STEPS
    )
    assert report.run is None
    assert len(frames_of(tmp_path / name)) == num_frames
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "sheet.png"])


def test_a_still_holds_one_frame(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one picture"):
        generate_film(pipeline, "clouds", tmp_path / "film.png", num_frames=2, **STEPS)
    assert not list(tmp_path.iterdir())


def test_the_record_says_how_it_was_made(pipeline: LatentVideoPipeline, model: Path, tmp_path: Path) -> None:
    report = generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=14, seed=5, model=model, **STEPS)
    record = read_json(tmp_path / "film.run" / "run.json")
    assert record["settings"]["seed"] == 5
    assert record["settings"]["model"] == str(model)
    assert record["num_windows"] == 2
    assert record["film"] == {"sha256": sha256_of(tmp_path / "film.mp4"), "num_frames": 14}
    assert set(record["weights"]) >= {"unet", "vae", "text_encoder"}
    drift = read_json(tmp_path / "film.run" / "drift.json")
    assert drift["clips"][0]["num_frames"] == 14
    assert len(drift["clips"][0]["curves"]["motion"]["values"]) == 13
    assert [seam["frame"] for seam in drift["clips"][0]["seams"]] == [8]
    assert report.drift == drift["summary"]
    assert (tmp_path / "film.run" / "drift.png").is_file()
