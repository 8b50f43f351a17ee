"""Latent files: what is written is read, whole or in part; what is damaged is refused; length costs no memory."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.latent_file import HEADER_BYTES, LatentFile, LatentMeta, LatentWriter, describe
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.rng import Rng
from tests.autoencoders.small_networks import grown, image_network

FRAMES = 7
FPS = Fraction(30000, 1001)


def meta(**other: Any) -> LatentMeta:
    values: dict[str, Any] = {
        "vae": "small",
        "latent_space": "ab" * 32,
        "scaling_factor": 0.18215,
        "shift_factor": 0.1,
        "spatial_factor": 8,
        "height": 30,
        "width": 41,
        "fps": FPS,
        "time_base": Fraction(1, 90000),
        "source_name": "clouds / évening.mp4",
    }
    return LatentMeta(**values | other)


def latents() -> Tensor:
    return Rng(1).normal(4, FRAMES, 4, 6)[0]


def ticks() -> list[Fraction]:
    return [Fraction(k * k + 3003 * k, 90000) for k in range(FRAMES)]


def write(path: Path, *, chunk: int = 3, logvar: bool = False, **options: Any) -> Path:
    with LatentWriter(path, meta(), **options) as writer:
        for start in range(0, FRAMES, chunk):
            part = latents()[:, start : start + chunk]
            writer.write(part, ticks()[start : start + chunk], part - 5 if logvar else None)
    return path


@pytest.mark.parametrize("logvar", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_what_is_written_is_read(tmp_path: Path, chunk: int, logvar: bool) -> None:
    file = LatentFile(write(tmp_path / "a.safetensors", chunk=chunk, logvar=logvar))
    file.verify()
    assert file.meta == meta()
    assert file.times_s == ticks()
    assert not file.is_regular
    assert file.meta.padding == (2, 7)
    assert torch.equal(torch.cat(list(file.chunks(2)), dim=1), latents())
    assert torch.equal(file.read(2, 4), latents()[:, 2:4])
    assert file.has_logvar == logvar
    if logvar:
        assert torch.equal(file.read(logvar=True), latents() - 5)


def test_any_safetensors_reader_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", logvar=True)
    tensors = load_file(path)
    assert torch.equal(tensors["latents"].transpose(0, 1), latents())
    assert tensors["times"].tolist() == [k * k + 3003 * k for k in range(FRAMES)]


def test_chunking_leaves_no_trace(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{k}.safetensors", chunk=k, logvar=True) for k in (1, 5))
    assert one.read_bytes() == other.read_bytes()


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    whole, half = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", precision="fp16")
    sizes = [path.stat().st_size - HEADER_BYTES - 8 * FRAMES for path in (whole, half)]
    assert sizes == [4 * latents().numel(), 2 * latents().numel()]
    torch.testing.assert_close(LatentFile(half).read(), latents(), atol=2e-3, rtol=1e-3)
    with (
        pytest.raises(CheckpointError, match="cannot hold"),
        LatentWriter(tmp_path / "c.safetensors", meta(), precision="fp16") as writer,
    ):
        writer.write(latents() * 1e6, ticks())
    assert not (tmp_path / "c.safetensors").exists()


def test_regular_times_are_known_as_such(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "a.safetensors", meta(time_base=1 / FPS)) as writer:
        writer.write(latents(), [k / FPS for k in range(FRAMES)])
    assert LatentFile(tmp_path / "a.safetensors").is_regular


def interrupted(path: Path) -> None:
    with LatentWriter(path, meta()) as writer:
        writer.write(latents(), ticks())
        raise KeyboardInterrupt


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    with pytest.raises(UsageError, match="no frames"), LatentWriter(path, meta()):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_touched_unless_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        write(path, precision="fp16")
    assert path.read_bytes() == before
    write(path, precision="fp16", overwrite=True)
    assert path.read_bytes() != before


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 4, 100, HEADER_BYTES, HEADER_BYTES + 50, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            LatentFile(cut)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 333] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        LatentFile(path).verify()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("format_version", "9"),
        ("height", "31000"),
        ("width", "none"),
        ("fps", "1/0"),
        ("fps", None),
        ("time_base", "-1/25"),
        ("spatial_factor", "0"),
        ("scaling_factor", "nan"),
    ],
)
def test_headers_without_sense_are_refused(tmp_path: Path, key: str, value: str | None) -> None:
    words = meta().to_words() | {key: value or ""}
    if value is None:
        del words[key]
    stored = latents().transpose(0, 1).contiguous()
    save_file({"latents": stored, "times": torch.arange(FRAMES)}, tmp_path / "a.safetensors", words)
    with pytest.raises(CheckpointError, match="a.safetensors"):
        LatentFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(FRAMES, 4, 4, 6)},
        {"latents": torch.zeros(4, 4, 6), "times": torch.arange(4)},
        {"latents": torch.zeros(FRAMES, 4, 4, 6), "times": torch.zeros(FRAMES, dtype=torch.int64)},
        {"latents": torch.zeros(FRAMES, 4, 4, 6), "times": torch.arange(FRAMES), "logvar": torch.zeros(1, 4, 4, 6)},
        {"latents": torch.zeros(FRAMES, 4, 4, 6, dtype=torch.int64), "times": torch.arange(FRAMES)},
        {"weight": torch.zeros(3)},
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors", meta().to_words())
    with pytest.raises(CheckpointError, match="a.safetensors"):
        LatentFile(tmp_path / "a.safetensors")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = {"latents": torch.full((FRAMES, 4, 4, 6), torch.nan), "times": torch.arange(FRAMES)}
    save_file(tensors, tmp_path / "a.safetensors", meta().to_words())
    with pytest.raises(CheckpointError, match="not finite"):
        list(LatentFile(tmp_path / "a.safetensors").chunks())


def test_a_wrong_decoder_is_refused_unless_wanted(tmp_path: Path) -> None:
    image, other = ImageAutoencoder(image_network("kl")), ImageAutoencoder(image_network("kl", seed=9))
    about = describe(image, height=8, width=12, fps=FPS, time_base=Fraction(1, 1000))
    with LatentWriter(tmp_path / "a.safetensors", about) as writer:
        writer.write(torch.zeros(3, 1, 4, 6), [Fraction(0)])
    file = LatentFile(tmp_path / "a.safetensors")
    file.check_fits(image)
    file.check_fits(grown("kl", trained=True))
    with pytest.raises(CheckpointError, match="--any-vae"):
        file.check_fits(other)
    file.check_fits(other, any_vae=True)
    with pytest.raises(CheckpointError, match="channels"):
        file.check_fits(ImageAutoencoder(image_network("tiny")), any_vae=True)


def test_metadata_is_words_that_json_holds(tmp_path: Path) -> None:
    words = meta().to_words()
    assert words["fps"] == "30000/1001"
    assert json.loads(words["padding"]) == [2, 7]
    assert LatentMeta.from_words(words) == meta()
