"""Evaluating reconstructions: known damage measured back, streamed, reported and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape, VideoShape
from latentvid.evaluation.pictures import AMPLIFICATION, amplified_difference, picture_indices
from latentvid.evaluation.reconstruction import chunk_error, evaluate_reconstruction, fit, reconstruct
from latentvid.metrics.frechet import Frechet
from latentvid.metrics.psnr import CAP_DB, Psnr


class Blocks:
    """A lossless autoencoder: 4x4 blocks folded into channels, with a constant error added on the way back."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.held = 0
        self.most_held = 0

    def latent_shape(self, video: VideoShape) -> LatentShape:
        return LatentShape(video.batch, 48, video.frames, video.height // 4, video.width // 4)

    def encode(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in frames:
            self.held += len(chunk)
            self.most_held = max(self.most_held, self.held)
            yield torch.nn.functional.pixel_unshuffle(chunk, 4).transpose(0, 1)

    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in latents:
            decoded = torch.nn.functional.pixel_shuffle(chunk.transpose(0, 1), 4) + self.offset
            self.held -= len(decoded)
            yield decoded


class Late(Blocks):
    """Gives frames back two late and in other chunks than they came in."""

    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        frames: list[Tensor] = []
        for chunk in super().decode(latents):
            frames.extend(chunk)
            while len(frames) > 2:
                yield torch.stack([frames.pop(0)])
        if frames:
            yield torch.stack(frames)


class Dropping(Blocks):
    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in super().decode(latents):
            yield chunk[1:]


class Adding(Blocks):
    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in super().decode(latents):
            yield torch.cat([chunk, chunk])


class Seamed(Blocks):
    """Brightens the first frame of every chunk it decodes."""

    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in super().decode(latents):
            chunk[0] += 0.25
            yield chunk


def _write(path: Path, num_frames: int = 10, height: int = 35, width: int = 37) -> Path:
    """A lossless clip of drifting blobs, at an odd size."""
    pattern = torch.nn.functional.interpolate(Rng(3).normal(3, 5, 6), size=(height, width), mode="bicubic")[0]
    pattern = (128 + 40 * pattern).clamp(30, 225).to(torch.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for t in range(num_frames):
            rgb = np.ascontiguousarray(torch.roll(pattern, t, dims=-1).permute(1, 2, 0).numpy())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [_write(folder / "a.mkv"), _write(folder / "b.mkv", num_frames=5, height=40, width=64)]


def test_known_damage_is_measured_back(clips: list[Path]) -> None:
    report = evaluate_reconstruction({"exact": Blocks(), "off": Blocks(10 / 127.5)}, clips, chunk_frames=3)
    means = report.means()
    assert means["exact"]["psnr"] > 90
    assert means["exact"]["flicker"] == pytest.approx(0, abs=1e-4)
    assert means["off"]["psnr"] == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert means["off"]["flicker"] == pytest.approx(0, abs=1e-3)
    assert means["off"]["chunk_error"] == 0
    assert [(r.clip, r.autoencoder, r.num_frames, r.height, r.width) for r in report.results] == [
        ("a.mkv", "exact", 10, 35, 37),
        ("a.mkv", "off", 10, 35, 37),
        ("b.mkv", "exact", 5, 40, 64),
        ("b.mkv", "off", 5, 40, 64),
    ]
    assert [len(curve) for curve in report.curves().values()] == [10, 10]


def test_a_late_autoencoder_is_compared_with_the_right_frames(clips: list[Path]) -> None:
    values = [
        evaluate_reconstruction({"vae": vae(0.05)}, clips[:1], chunk_frames=chunk).results[0].values["psnr"]
        for vae in (Blocks, Late)
        for chunk in (1, 4, 64)
    ]
    assert values == pytest.approx([values[0]] * 6, rel=1e-6)


def test_the_clip_is_streamed(clips: list[Path]) -> None:
    vae = Blocks()
    evaluate_reconstruction({"vae": vae}, clips[:1], chunk_frames=2, chunk_check_frames=0)
    assert vae.most_held == 2


@pytest.mark.parametrize("vae", [Dropping(), Adding()])
def test_frames_in_must_be_frames_out(vae: Blocks) -> None:
    with pytest.raises(CheckpointError, match="gave back"):
        list(reconstruct(vae, iter([torch.zeros(4, 3, 8, 8)])))


def test_chunk_error_finds_a_seam() -> None:
    frames = Rng(1).uniform(6, 3, 9, 14)[0] - 0.5
    assert chunk_error(Blocks(), frames) == 0
    assert chunk_error(Seamed(), frames) == pytest.approx(0.25, abs=1e-6)


def test_damaged_clips_fail_alone(clips: list[Path], tmp_path: Path) -> None:
    junk = tmp_path / "junk.mp4"
    junk.write_bytes(b"junk" * 100)
    report = evaluate_reconstruction({"one": Blocks(), "two": Blocks()}, [junk, *clips, tmp_path / "absent.mp4"])
    assert set(report.failures) == {"junk.mp4", "absent.mp4"}
    assert len(report.results) == 4
    assert "absent.mp4" in report.table()


def test_all_clips_failing_still_reports(tmp_path: Path) -> None:
    report = evaluate_reconstruction({"one": Blocks()}, [tmp_path / "absent.mp4"])
    report.write(tmp_path / "report")
    assert report.results == []
    assert "absent.mp4" in report.table()


def test_options_are_used(clips: list[Path]) -> None:
    seen: list[tuple[str, str]] = []
    report = evaluate_reconstruction(
        {"vae": Blocks()}, clips[:1], max_frames=4, size=(24, 32), on_clip=lambda *names: seen.append(names)
    )
    assert seen == [("a.mkv", "vae")]
    assert (report.results[0].num_frames, report.results[0].height, report.results[0].width) == (4, 24, 32)
    video = torch.zeros(1, 3, 30, 60)
    assert fit(video, 20).shape == (1, 3, 20, 40)
    assert fit(video, (50, 50)).shape == (1, 3, 50, 50)
    assert fit(video, None) is video


def test_set_metrics_gather_over_clips(clips: list[Path]) -> None:
    frechet = Frechet(lambda clip: clip.mean(dim=(2, 3, 4)), name="colour", num_frames=2)
    report = evaluate_reconstruction({"vae": Blocks(0.1)}, clips, metrics={"psnr": Psnr(), "frechet": frechet})
    assert report.over_set["vae"]["frechet_clips"] == 7
    assert report.means()["vae"]["frechet"] == pytest.approx(3 * 0.1**2, rel=1e-3)
    assert "frechet" not in report.results[0].values
    assert report.protocol["metrics"]["frechet"]["extractor"] == "colour"


def test_the_report_is_complete(clips: list[Path], tmp_path: Path) -> None:
    about = {"off": {"sha256": "abc"}}
    vaes = {"exact": Blocks(0.02), "off": Blocks(0.04)}
    report = evaluate_reconstruction(vaes, clips, about=about, num_pictures=1)
    names = {path.name for path in report.write(tmp_path)}
    assert names == {"report.json", "report.md", "a.mkv.png", "curve.png"} == {p.name for p in tmp_path.iterdir()}
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["versions"]["torch"] == torch.__version__
    assert set(data["sources_sha256"]) == {"a.mkv", "b.mkv"}
    assert data["protocol"]["autoencoders"] == about
    assert data["protocol"]["metrics"]["psnr"]["cap_db"] == CAP_DB
    assert len(data["clips"]) == 4
    assert "off against exact: psnr -6.02" in (tmp_path / "report.md").read_text()
    for name in ("a.mkv.png", "curve.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
    lines = (tmp_path / "report.md").read_text().splitlines()[:8]
    assert len({len(line) for line in lines}) == 1


def test_clips_of_one_name_stay_apart(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    other = _write(tmp_path / "x" / "a.mkv", num_frames=2)
    report = evaluate_reconstruction({"vae": Blocks()}, [clips[0], other])
    assert len({result.clip for result in report.results}) == 2


def test_mistakes_are_told(clips: list[Path]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        evaluate_reconstruction({}, clips)
    with pytest.raises(UsageError, match="max_frames"):
        evaluate_reconstruction({"vae": Blocks()}, clips, max_frames=0)
    with pytest.raises(UsageError, match="did you mean 'ssim'"):
        evaluate_reconstruction({"vae": Blocks()}, clips, metrics=["sim"])


def test_pictures_show_the_ends_and_amplify() -> None:
    assert picture_indices(1, 4) == [0]
    assert picture_indices(3, 4) == [0, 1, 2]
    assert picture_indices(0, 4) == []
    source = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    assert torch.equal(amplified_difference(source + 2, source), torch.full_like(source, 128 + 2 * AMPLIFICATION))
    assert torch.equal(amplified_difference(source - 50, source), torch.zeros_like(source))
