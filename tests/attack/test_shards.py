"""Shards of latents from strangers: samples that are what they say, or one sentence."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentvid.autoencoders.latent_file import LatentMeta, LatentWriter
from latentvid.data.latent_shards import LatentShards, ShardWriter
from latentvid.training.pack import open_packed, pack_files
from tests.attack.decoy import chosen, is_orderly, make_decoy, python, snapshot

Members = list[tuple[str, bytes]]
Tamper = Callable[[Path, Path], Any]
"""Changes a shard; the second path is the decoy."""
SPACE = "ab" * 32
HUGE = 10**9


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shard of two windows of three latents [2 4 5], of clips of 32x40 pixels, with a caption."""
    folder, rate = tmp_path_factory.mktemp("valid"), Fraction(25)
    meta = LatentMeta("vae", SPACE, 1.0, 0.0, 8, 32, 40, rate, 1 / rate)
    with LatentWriter(folder / "a.safetensors", meta) as writer:
        writer.write(torch.randn(2, 6, 4, 5), [k / rate for k in range(6)])
    (folder / "a.txt").write_text("clouds\n", encoding="utf-8")
    with ShardWriter(folder) as shards:
        pack_files([("a", folder / "a.safetensors", folder / "a.mp4")], shards, num_frames=3)
    return shards.paths[0].read_bytes()


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write(path: Path, found: Members, **about: Any) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in found:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in about.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))


def rewritten(change: Callable[[str, bytes], bytes], kind: str) -> Tamper:
    """Change the first member of a kind."""

    def work(path: Path, _: Path) -> None:
        found = members(path)
        number = next(k for k, (name, _) in enumerate(found) if name.endswith(kind))
        found[number] = (found[number][0], change(*found[number]))
        write(path, found)

    return work


def says(**values: Any) -> tuple[str, Tamper]:
    change = rewritten(lambda _, data: json.dumps({**json.loads(data), **values}).encode(), ".json")
    return f"it says {values}"[:50], change


def array(shape: tuple[int, ...], dtype: Any = np.float32, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(shape, dtype, **options))
    return stream.getvalue()


def latents(name: str, data: bytes) -> tuple[str, Tamper]:
    return name, rewritten(lambda *_: data, ".npy")


def swapped(old: bytes, new: bytes) -> tuple[str, Tamper]:
    return f"{new!r} for {old!r}", rewritten(lambda _, data: data.replace(old, new, 1), ".npy")


def record(name: str, data: bytes) -> tuple[str, Tamper]:
    return name, rewritten(lambda *_: data, ".json")


def kind_of(name: str, **about: Any) -> tuple[str, Tamper]:
    """Make members of another kind: links, pipes, devices."""
    return name, lambda path, _: write(path, [(n, b"") for n, _ in members(path)], **about)


def size_below_zero(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 12  # -1, as GNU tar writes it
    checksum = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = b"%06o\0 " % checksum
    path.write_bytes(data)


def put(name: str, start: int, data: bytes) -> tuple[str, Tamper]:
    def change(path: Path, _: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[start : start + len(data)] = data
        path.write_bytes(whole)

    return name, change


def cut(length: int) -> tuple[str, Tamper]:
    return f"cut at {length}", lambda path, _: os.truncate(path, length)


def instead(name: str, make: Callable[[Path, Path], Any]) -> tuple[str, Tamper]:
    def change(path: Path, decoy: Path) -> None:
        path.unlink()
        make(path, decoy)

    return name, change


def without(kind: str) -> tuple[str, Tamper]:
    return f"no {kind}", lambda path, _: write(path, [m for m in members(path) if not m[0].endswith(kind)])


CASES: list[tuple[str, Tamper]] = [
    *(says(num_latents=value) for value in (4, 2, -3, 0, HUGE, "3", 3.0, None, [3], True)),
    *(says(height=value) for value in (33, 24, 0, -32, HUGE, "32", None)),
    *(says(width=value) for value in (41, 32, "x", 1e999)),
    *(says(spatial_factor=value) for value in (4, 16, 0, -8, "8", None, HUGE)),
    *(says(channels=value) for value in (3, "2")),
    says(latent_space="cd" * 32),
    says(latent_space=None),
    says(num_latents=10**60),
    latents("another length", array((4, 2, 4, 5))),
    latents("another size", array((3, 2, 4, 6))),
    latents("other channels", array((3, 3, 4, 5))),
    latents("no latents", array((0, 2, 4, 5))),
    latents("five axes", array((3, 2, 4, 5, 1))),
    latents("columns first", array((3, 2, 4, 5), order="F")),
    latents("doubles", array((3, 2, 4, 5), np.float64)),
    swapped(b"<f4", b"|O "),
    latents("infinities", array((3, 2, 4, 5))[:128] + b"\x00\x00\x80\x7f" * 120),
    latents("nothing", b""),
    latents("a pickle", b"\x80\x04cos\nsystem\n."),
    swapped(b"(3, 2, 4, 5)", b"(3, 2, 4, 9)"),
    swapped(b"(3, 2, 4, 5)", b"(9**9**9**9)"),
    swapped(b"(3, 2, 4, 5)", b"(((((((((((("),
    swapped(b"(3, 2, 4, 5)", b"(-3, -2,4,5)"),
    swapped(b"NUMPY\x01", b"NUMPY\x03"),
    swapped(b"False", b"True "),
    record("a record of brackets", b"[" * 100_000),
    record("a record that is a list", b"[1]"),
    record("a record that is no text", b"\xff\xfe"),
    record("an empty record", b""),
    record("a large record", b" " * (1 << 21)),
    record("a number of many digits", b'{"num_latents": ' + b"3" * 5000 + b"}"),
    ("a large caption", rewritten(lambda *_: b"x" * (2 << 20), ".txt")),
    ("everything twice", lambda path, _: write(path, members(path) * 2)),
    without(".npy"),
    without(".json"),
    kind_of("links", type=tarfile.SYMTYPE, linkname="../decoy/notes.txt"),
    kind_of("hard links", type=tarfile.LNKTYPE, linkname="../decoy/notes.txt"),
    kind_of("pipes", type=tarfile.FIFOTYPE),
    kind_of("devices", type=tarfile.CHRTYPE),
    ("a size below zero", size_below_zero),
    put("a size without end", 124, b"77777777777\0"),
    put("no checksum", 148, b"00000000"),
    *(cut(length) for length in (0, 300, 700, 1024, 1500)),
    instead("a pipe", lambda path, _: os.mkfifo(path)),
    instead("a folder", lambda path, _: path.mkdir()),
    instead("a link to another file", lambda path, decoy: path.symlink_to(decoy / "notes.txt")),
    instead("a pointer", lambda path, _: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")),
    instead("zeros", lambda path, _: path.write_bytes(bytes(5000))),
    instead("a large hole", lambda path, _: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40)),
]  # fmt: skip


def use(path: Path) -> None:
    shards = open_packed([path], SPACE, num_frames=3, num_channels=2)
    for number in range(len(shards)):
        shards.latents(number)


@pytest.mark.parametrize(("name", "tamper"), chosen(CASES), ids=[name for name, _ in chosen(CASES)])
def test_a_tampered_shard_is_refused_in_one_sentence(name: str, tamper: Tamper, valid: bytes, tmp_path: Path) -> None:
    decoy, path = make_decoy(tmp_path), tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(valid)
    assert python(lambda: use(path)).code == 0
    tamper(path, decoy)
    before = snapshot(decoy)
    call = python(lambda: use(path))
    assert is_orderly(call), call
    assert call.code in (2, 4), call
    assert snapshot(decoy) == before


def test_samples_of_folders_are_told_apart(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(valid)
    found = [(name.partition(".")[::2], data) for name, data in members(path)][:2]
    write(path, [(f"{folder}/x.{kind}", data) for folder in ("a", "b", "a.b/c") for (_, kind), data in found])
    shards = LatentShards(path)
    assert shards.keys == ["a/x", "b/x", "a.b/c/x"]
    assert torch.equal(shards.latents(0), shards.latents(1))
