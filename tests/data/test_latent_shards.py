"""Shards of latents: what is packed comes out, by our reader and by others; what is damaged is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentMeta, LatentWriter
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.data.latent_shards import LatentShards, ShardWriter
from latentvid.training.pack import pack_files


def latents(seed: int, num_frames: int = 3) -> Tensor:
    return torch.randn(2, num_frames, 4, 5, generator=torch.Generator().manual_seed(seed))


def pack(folder: Path, *, num_samples: int = 7, first: int = 0, **options: Any) -> list[Path]:
    with ShardWriter(folder, **options) as writer:
        for k in range(first, first + num_samples):
            writer.add(f"clip-{k}", latents(k), {"k": k}, caption=f"a word {k}" if k % 2 else "")
    return writer.paths


def test_what_is_packed_comes_out_in_order(tmp_path: Path) -> None:
    paths = pack(tmp_path / "shards", max_bytes=8000)
    assert len(paths) > 1
    assert all(path.stat().st_size <= 8000 + 10240 for path in paths)  # tar rounds its end up
    shards = LatentShards(tmp_path / "shards")
    assert len(shards) == 7
    for k in (6, 0, 3):
        assert torch.equal(shards.latents(k), latents(k))
        assert (shards.keys[k], shards.about(k), shards.captions[k]) == (
            f"clip-{k}", {"k": k}, [f"a word {k}"] if k % 2 else [],
        )  # fmt: skip


def test_numpy_and_tar_alone_can_read_it(tmp_path: Path) -> None:
    (path,) = pack(tmp_path)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert names[:2] == ["clip-0.latents.npy", "clip-0.json"]
        array = np.load(io.BytesIO(tar.extractfile(names[0]).read()), allow_pickle=False)  # type: ignore[union-attr]
    assert np.array_equal(array, latents(0).transpose(0, 1).numpy())


def test_webdataset_reads_it(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (path,) = pack(tmp_path)
    samples = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"clip-{k}" for k in range(7)]
    assert json.loads(samples[3]["json"]) == {"k": 3}
    assert samples[3]["txt"] == b"a word 3"


def test_a_repeated_run_touches_nothing_and_another_is_refused(tmp_path: Path) -> None:
    paths = pack(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    pack(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths} == before
    with pytest.raises(UsageError, match="other latents"):
        pack(tmp_path, first=1)
    assert paths[0].read_bytes() == before[paths[0]][0]
    assert sorted(tmp_path.iterdir()) == paths
    pack(tmp_path, first=1, overwrite=True)
    assert LatentShards(tmp_path).keys[0] == "clip-1"


def interrupted(folder: Path) -> None:
    with ShardWriter(folder) as writer:
        writer.add("a", latents(0), {})
        raise KeyboardInterrupt


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no key"), ShardWriter(tmp_path) as writer:
        writer.add("a.b", latents(0), {})


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


GOOD = npy(np.zeros((3, 2, 4, 5), np.float16))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"x",
        GOOD.replace(b"(3, 2, 4, 5)", b"(9, 2, 4, 5)"),
        GOOD.replace(b"(3, 2, 4, 5)", b"(-3,2,-4,5)"),
        GOOD.replace(b"<f2", b"<i2"),
        GOOD.replace(b"<f2", b"|O "),
        npy(np.full((3, 2, 4, 5), np.nan, np.float32)),
        npy(np.zeros((3, 4)), allow_pickle=False),
        npy(np.array([{}]), allow_pickle=True),
        pickle.dumps(1),
    ],
)
def test_arrays_that_are_none_of_ours_are_refused(tmp_path: Path, data: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("x.latents.npy", data), ("x.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(CheckpointError, match=r"a\.tar"):
        LatentShards(tmp_path).latents(0)


def test_files_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no shards"):
        LatentShards(tmp_path)
    (path,) = pack(tmp_path)
    whole = path.read_bytes()
    for content in (b"", whole[:700], whole[:5000], b"x" * 2000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            LatentShards(path).latents(6)


def test_latent_files_become_windows(tmp_path: Path) -> None:
    rate = Fraction(25)
    meta = LatentMeta("vae", "ab" * 32, 1.0, 0.0, 8, 32, 40, rate, 1 / rate)
    for name, frames in (("a", 7), ("b", 3)):
        with LatentWriter(tmp_path / f"{name}.safetensors", meta, precision="fp16") as writer:
            writer.write(latents(0, frames), [k / rate for k in range(frames)])
    (tmp_path / "a.txt").write_text("clouds\n")
    files = [(name, tmp_path / f"{name}.safetensors", tmp_path / f"{name}.mp4") for name in ("a", "b")]
    with ShardWriter(tmp_path / "windows") as shards:
        pack_files(files, shards, num_frames=3)
    found = LatentShards(tmp_path / "windows")
    assert [(found.about(k)["name"], found.about(k)["first_latent"]) for k in range(3)] == [
        ("a", 0),
        ("a", 3),
        ("b", 0),
    ]
    assert torch.equal(found.latents(1), latents(0, 7)[:, 3:6].half().float())
    assert found.captions == [["clouds"], ["clouds"], []]
    with ShardWriter(tmp_path / "whole") as shards:
        pack_files(files, shards)
    assert [LatentShards(tmp_path / "whole").latents(k).shape[1] for k in (0, 1)] == [7, 3]
