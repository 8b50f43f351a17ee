"""Films on the GPU: the CPU's latents; killed, starved and resumed to the same bytes; compiled; in constant memory."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.cli.main import main
from latentvid.core.errors import ResourceError
from latentvid.core.files import sha256_of
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime, resolve_runtime
from latentvid.film.extend import extend_clip
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.latents import FilmLatents
from latentvid.film.make import Progress
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter
from tests import factories
from tests.autoencoders.small_networks import grown
from tests.film.tiny import STEPS, hashes
from tests.gpu.compare import EXACT, HALF, assert_near, tf32

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
SKY = ROOT / "checkpoints" / "sky"
FILM = 10 * EXACT
"""What a few windows of two steps may make of the rounding of single passes, in float32."""


def load(model: Path, runtime: Runtime) -> LatentVideoPipeline:
    return LatentVideoPipeline.from_pretrained(model, runtime=runtime)


def latents_of(run: Path) -> Tensor:
    film = FilmLatents(RunFolder.open(run))
    return film.read(film.plan.given, film.stop)


def in_child(how: str, model: Path, out: Path, device: torch.device, dtype: str, frames: int) -> Any:
    """Make a film in a process of its own (see `child`) and return how that ended."""
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.child", how, str(model), str(out), str(device), dtype, str(frames)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def same_as_whole(model: Path, out: Path, frames: int, dtype: str, device: torch.device) -> None:
    """Resume a film in this process, and compare it with one that was never stopped."""
    folder = RunFolder.open(out)
    done = folder.num_complete()
    assert 0 < done < folder.record.num_windows
    assert not out.exists()
    whole = out.with_name("whole.mp4")
    runtime = resolve_runtime(str(device), dtype)
    with tf32(allowed=None):
        assert resume_film(folder.path).resumed_at == done
        options = {"crf": 18, "model": model, "runtime": runtime, **STEPS}
        generate_film(load(model, runtime), "clouds", whole, num_frames=frames, **options)
    for pattern in ("windows/*.safetensors", "windows/*.mp4"):
        assert hashes(out.with_suffix(".run"), pattern) == hashes(whole.with_suffix(".run"), pattern)
    assert sha256_of(out) == sha256_of(whole)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("name", "at", "frames"), [("tiny", 9, 20), ("sky", 8, 24)])
def test_a_killed_film_is_resumed_to_the_same_bytes(
    name: str, at: int, frames: int, device: torch.device, model: Path, tmp_path: Path
) -> None:
    """The tiny model in float32, and the one that is shipped in what its device takes by itself."""
    chosen, dtype = (model, "fp32") if name == "tiny" else (SKY, "auto")
    if not (chosen / "model_index.json").is_file():
        pytest.skip(f"{chosen} is not here")
    died = in_child(str(at), chosen, tmp_path / "film.mp4", device, dtype, frames)
    assert died.returncode == -signal.SIGKILL, died.stderr
    same_as_whole(chosen, tmp_path / "film.mp4", frames, dtype, device)


@pytest.mark.slow
def test_without_memory_it_ends_with_a_sentence_and_is_resumed(
    device: torch.device, model: Path, tmp_path: Path
) -> None:
    failed = in_child("memory", model, tmp_path / "film.mp4", device, "auto", 20)
    assert failed.returncode == 5, failed.stderr
    said = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: the device gave out (out of memory: 1.00 GiB more did not fit); "
        f"`latentvid resume {tmp_path / 'film.run'}` goes on."
    ]
    assert "Traceback" not in failed.stderr
    same_as_whole(model, tmp_path / "film.mp4", 20, "auto", device)


@pytest.mark.slow
def test_a_compiled_film_is_the_film(device: torch.device, model: Path, tmp_path: Path) -> None:
    try:
        compiled = resolve_runtime(str(device), "fp32", compile=True)
    except ResourceError as error:
        pytest.skip(str(error))
    plain = resolve_runtime(str(device), "fp32")
    wanted: dict[str, Any] = {"num_frames": 14, "guidance_scale": 1.0, **STEPS}
    generate_film(load(model, plain), "clouds", tmp_path / "plain.mp4", **wanted)
    pipeline = load(model, compiled)
    for name in ("one", "two"):
        generate_film(pipeline, "clouds", tmp_path / f"{name}.mp4", runtime=compiled, **wanted)
    assert RunFolder.open(tmp_path / "one.run").settings.place.compile
    assert sha256_of(tmp_path / "one.mp4") == sha256_of(tmp_path / "two.mp4")
    assert_near(latents_of(tmp_path / "one.run"), latents_of(tmp_path / "plain.run"), FILM)


@pytest.mark.parametrize("rule", ["reuse", "context"])
def test_films_are_those_of_the_cpu(rule: str, device: torch.device, model: Path, tmp_path: Path) -> None:
    """Made, continued, and made again in one window; begun with a picture where the model can be given one."""
    if rule == "context":
        rules = {"kind": "context", "overlap": 2, "context_sigma": 0.1}
        factories.pipeline(overlap_rule=rules, prior="mixed").save_pretrained(tmp_path / "model")
        model = tmp_path / "model"
        pixels = Rng(1).integers(0, 256, 8, 8, 3)[0].to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "start.png")
    found: list[list[Tensor]] = []
    for number, where in enumerate(("cpu", str(device))):
        pipeline = load(model, resolve_runtime(where, "fp32"))
        folder = tmp_path / str(number)
        folder.mkdir()
        more = {"start_image": tmp_path / "start.png"} if rule == "context" else {}
        length = 2 * pipeline.config.num_frames
        generate_film(pipeline, "clouds", folder / "film.mp4", num_frames=length, **more, **STEPS)
        runs = [latents_of(folder / "film.run")]
        extend_clip(pipeline, folder / "film.mp4", folder / "longer.mp4", num_frames=8, **STEPS)
        runs.append(latents_of(folder / "longer.run"))
        # The clip alone, as a stranger's: encoded, and inverted where the rule asks for it.
        source = tmp_path / "0" / "clip.mp4" if number else folder / "film.mp4"
        shutil.copyfile(source, folder / "clip.mp4")
        extend_clip(pipeline, folder / "clip.mp4", folder / "other.mp4", num_frames=8, **STEPS)
        runs.append(latents_of(folder / "other.run"))
        reroll_window(folder / "film.run", 1, seed=5, pipeline=pipeline)
        runs.append(latents_of(folder / "film.run"))
        found.append(runs)
    for cpu, gpu in zip(*found, strict=True):
        assert_near(gpu, cpu, FILM)
    bf16 = load(model, resolve_runtime(str(device), "bf16"))
    clip = next(bf16.stream("clouds", num_frames=bf16.config.num_frames, guidance_scale=1.0, **STEPS))
    fp32 = load(model, resolve_runtime("cpu", "fp32"))
    assert_near(clip, next(fp32.stream("clouds", num_frames=len(clip), guidance_scale=1.0, **STEPS)), 2 * HALF)


def held_bytes(device: torch.device) -> int:
    """Return the bytes of tensors on a device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.memory_allocated(device))
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("rule", [{"kind": "context", "overlap": 2}, {"kind": "reuse", "overlap": 2}])
def test_memory_does_not_grow_with_the_film(
    rule: dict[str, Any], device: torch.device, model: Path, tmp_path: Path
) -> None:
    pipeline = load(model, resolve_runtime(str(device), "fp32"))
    held: list[int] = []

    def watch(at: Progress) -> None:
        if at.call == 0:
            held.append(held_bytes(device))

    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=38, rule=rule, on_progress=watch, **STEPS)
    assert len(held) == 6
    assert held[1] == held[2] == held[5]


def test_the_verbs_work_on_the_gpu(
    device: torch.device, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run; a clip to latents and back, and what was lost; each as the CPU has it."""

    def run(*words: str, place: str = str(device)) -> dict[str, Any]:
        code = main([*words, "--device", place, "--json", *(["-"] if words[0] == "evaluate" else [])])
        said = capsys.readouterr()
        assert code == 0, said.err
        answer: dict[str, Any] = json.loads(said.out)
        return answer

    words = ("generate", "clouds", "-o", str(tmp_path / "a.mp4"), "--model", str(model), "--frames", "20", "--dry-run")
    needs = run(*words)
    assert str(needs["device"]).startswith(device.type)
    assert needs["working_bytes"] > 0
    grown("tiny", trained=True).save_pretrained(tmp_path / "vae")
    clip = str(tmp_path / "clip.mkv")
    with VideoWriter(Path(clip), fps=Fraction(12), width=32, height=24, codec="h264-lossless") as writer:
        writer.write(Rng(2).uniform(7, 3, 24, 32)[0] * 2 - 1)
    vae = ("--vae", str(tmp_path / "vae"), "--dtype", "fp32")
    pictures, latents, reports = [], [], []
    for number, place in enumerate(("cpu", str(device))):
        coded, back = str(tmp_path / f"{number}.safetensors"), str(tmp_path / f"{number}.mkv")
        run("encode", clip, "-o", coded, *vae, place=place)
        latents.append(LatentFile(Path(coded)).read())
        run("decode", coded, "-o", back, *vae, place=place)
        with open_video(Path(back)) as reader:
            pictures.append(torch.stack([frame.pixels for frame in reader.frames()]).float())
        reports.append(json.dumps(run("evaluate", "reconstruction", clip, *vae, place=place)))
    assert_near(latents[1], latents[0], EXACT)
    assert (pictures[1] - pictures[0]).abs().mean() < 1, "of 255 levels"
    assert all("psnr" in report for report in reports)
