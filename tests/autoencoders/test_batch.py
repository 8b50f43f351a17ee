"""Folders of clips: one file per clip, nothing done twice, nothing taken for done that is not, bytes after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentvid.autoencoders.batch import EncodeSettings, difference, encode_files, plan_encode
from latentvid.autoencoders.codec import encode_file
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import LatentFile
from latentvid.cli.main import main
from latentvid.core.errors import InputError, UsageError
from tests.autoencoders.small_networks import grown, image_network
from tests.autoencoders.test_codec import clip

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def network() -> ImageAutoencoder:
    return grown("tiny", trained=True)


def statuses(*arguments: object, **options: object) -> list[str]:
    return [result["status"] for result in encode_files(*arguments, **options)]  # type: ignore[arg-type]


def test_a_batch_goes_on_where_it_stopped_and_over_bad_clips(network: ImageAutoencoder, tmp_path: Path) -> None:
    first, last = clip(tmp_path / "a.mp4", frames=2), clip(tmp_path / "c.mp4", frames=3)
    (tmp_path / "b.mp4").write_bytes(b"no video at all")
    sources = [first, tmp_path / "b.mp4", last, tmp_path / "missing.mp4"]
    jobs = [(path, tmp_path / f"{path.name}.safetensors") for path in sources]
    results = list(encode_files(network, jobs))
    assert [r["status"] for r in results] == ["encoded", "failed", "encoded", "failed"]
    assert {r["exit_code"] for r in results if r["status"] == "failed"} == {InputError.exit_code}
    assert not jobs[1][1].exists()
    stamp = jobs[0][1].stat().st_mtime_ns
    assert statuses(network, jobs) == ["skipped", "failed", "skipped", "failed"]
    assert jobs[0][1].stat().st_mtime_ns == stamp
    assert statuses(network, jobs[:1], overwrite=True) == ["encoded"]
    assert jobs[0][1].stat().st_mtime_ns != stamp


def test_only_what_would_be_made_again_counts_as_done(network: ImageAutoencoder, tmp_path: Path) -> None:
    source, target = clip(tmp_path / "a.mp4", frames=4), tmp_path / "a.safetensors"
    usual = EncodeSettings()
    encode_file(network, source, target)
    space = network.latent_space()
    assert difference(space, source, target, usual) is None
    other = ImageAutoencoder(image_network("tiny", seed=7))
    changes = {
        "whole clip": replace(usual, max_frames=3),
        "F32": replace(usual, precision="fp16"),
    }
    for why, settings in changes.items():
        assert why in str(difference(space, source, target, settings))
    assert "made by" in str(difference(other.latent_space(), source, target, usual))
    (result,) = encode_files(other, [(source, target)])
    assert (result["status"], result["exit_code"]) == ("failed", UsageError.exit_code)
    assert "--overwrite" in result["error"]
    # The same size, other bytes: only the hash can tell.
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    source.write_bytes(data)
    assert "another clip" in str(difference(space, source, target, usual))
    source.write_bytes(data + b"x")
    assert "another clip" in str(difference(space, source, target, usual))
    target.write_bytes(target.read_bytes()[:-9])
    assert "damaged" in str(difference(space, source, target, usual))


def test_the_first_frames_only(network: ImageAutoencoder, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    encode_file(network, source, tmp_path / "whole.safetensors")
    encode_file(network, source, tmp_path / "first.safetensors", max_frames=5)
    first, whole = LatentFile(tmp_path / "first.safetensors"), LatentFile(tmp_path / "whole.safetensors")
    assert (first.num_frames, first.meta.max_frames) == (5, 5)
    assert first.times_s == whole.times_s[:5]
    assert (first.read() - whole.read(0, 5)).abs().max() < 1e-5


def test_a_plan_says_what_will_be(network: ImageAutoencoder, tmp_path: Path) -> None:
    source, target = clip(tmp_path / "a.mp4"), tmp_path / "a.safetensors"
    plan = plan_encode(network, source, target)
    assert not target.exists()
    encode_file(network, source, target)
    file = LatentFile(target)
    assert plan["latents"] == [file.channels, file.num_frames, file.height, file.width]
    assert plan["num_bytes"] == 4 * file.read().numel()
    assert plan_encode(network, source, target, EncodeSettings("fp16", 5))["num_bytes"] == plan["num_bytes"] * 5 // 42


DIE = """
import os, signal, sys
from latentvid.autoencoders import latent_file
from latentvid.cli.main import main
write = latent_file.LatentWriter.write
written = []
def dying(self, *arguments, **options):
    write(self, *arguments, **options)
    self._file.flush()
    written.append(self.path)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
latent_file.LatentWriter.write = dying
main(sys.argv[1:])
"""


def test_a_killed_folder_ends_with_the_same_bytes(network: ImageAutoencoder, tmp_path: Path) -> None:
    clips = {"a.mp4": 3, "c.mp4": 2, "deep/er/b.mp4": 20}  # in the order of encoding; the last in two writes
    for name, frames in clips.items():
        clip(tmp_path / "in" / name, frames=frames)
    network.save_pretrained(tmp_path / "vae")
    words = ["encode", str(tmp_path / "in"), "--vae", str(tmp_path / "vae"), "--device", "cpu", "-q", "-o"]

    def files(out: str) -> dict[str, bytes]:
        folder = tmp_path / out
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    assert main([*words, str(tmp_path / "whole")]) == 0
    assert sorted(files("whole")) == [f"{name}.safetensors" for name in clips]
    # Equal numbers of threads, since sums depend on them.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", DIE, *words, str(tmp_path / "killed")]
    assert subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    shown = {name for name in files("killed") if not Path(name).name.startswith(".")}
    assert shown == {"a.mp4.safetensors", "c.mp4.safetensors"}
    assert len(files("killed")) == 3  # and what it was writing, hidden
    assert main([*words, str(tmp_path / "killed")]) == 0
    assert files("killed") == files("whole")
