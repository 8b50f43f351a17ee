"""Latent files from strangers: whatever is in them, one sentence or a film, and nothing else is touched."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from latentvid.autoencoders.latent_file import HEADER_BYTES, LatentFile, LatentWriter, describe
from latentvid.autoencoders.load import load_autoencoder
from latentvid.core.errors import CheckpointError
from latentvid.core.headers import seal
from tests.attack.decoy import chosen, command, is_orderly, make_decoy, snapshot

Tamper = Callable[[Path, Path], None]
"""Changes a latent file; the second path is the decoy."""
DEEP = "[" * 20_000
ESCAPES = "\x1b]0;pwn\x07\x1b[2J\x9b31m‮x\nfake: ok"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An autoencoder, and a latent file of its making."""
    folder = tmp_path_factory.mktemp("valid")
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
    ).save_pretrained(folder / "vae")
    autoencoder = load_autoencoder(folder / "vae")
    rate = Fraction(10)
    about = describe(autoencoder, height=8, width=10, fps=rate, time_base=1 / rate, source_name="a.mp4")
    with LatentWriter(folder / "a.safetensors", about) as writer:
        writer.write(torch.zeros(4, 5, 8, 10), [k / rate for k in range(5)])
    return folder / "vae", folder / "a.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], *, again: bool = True) -> None:
    """Change the table of a header; with the right hash of it again, as an attacker would, or without."""
    data = path.read_bytes()
    table = json.loads(data[8:HEADER_BYTES])
    change(table)
    text = json.dumps(table).encode()
    text = text.ljust(HEADER_BYTES - 8) if len(text) < HEADER_BYTES - 8 else text
    header = len(text).to_bytes(8, "little") + text
    path.write_bytes((seal(header) if again else header) + data[HEADER_BYTES:])


def word(name: str, value: str) -> Tamper:
    return lambda path, _: rewrite(path, lambda table: table["__metadata__"].update({name: value}))


def words(name: str, *values: str) -> list[tuple[str, Tamper]]:
    return [(f"{name} {value[:12]}", word(name, value)) for value in values]


def elsewhere(path: Path, decoy: Path) -> None:
    word("source_path", os.path.relpath(decoy / "notes.txt", path.parent))(path, decoy)


def escaped(path: Path, _: Path) -> None:
    rewrite(path, lambda table: table["__metadata__"].update(vae=ESCAPES, source_name=ESCAPES))


def entry(name: str, **values: Any) -> Tamper:
    return lambda path, _: rewrite(path, lambda table: table.setdefault(name, {}).update(values))


def without(*names: str) -> Tamper:
    def change(table: dict[str, Any]) -> None:
        for name in names:
            table["__metadata__"].pop(name, table.pop(name, None))

    return lambda path, _: rewrite(path, change, again=not {"header_sha256", "__metadata__"} & {*names})


def cut(length: int) -> Tamper:
    return lambda path, _: path.write_bytes(path.read_bytes()[:length])


def put(start: int, data: bytes) -> Tamper:
    def change(path: Path, _: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[start : start + len(data)] = data
        path.write_bytes(whole)

    return change


def replaced(how: Callable[[Path, Path], Any]) -> Tamper:
    def change(path: Path, decoy: Path) -> None:
        path.unlink()
        how(path, decoy)

    return change


CASES: list[tuple[str, Tamper]] = [
    *words("fps", "1e999999999", "0/1", "-3/1", "1/0", "nan", "9" * 6000, "1/" + "9" * 18, "1000000000/1", "²", "1_0"),
    *words("fps", "", "10/1 ", "333333333333333333/33333333333333334"),
    *words("time_base", "1e-999999999", "999999999/1", "1/999999999999999999", "x"),
    *words("sample_aspect_ratio", "0/1", "1/999999999999", "999999999999/1", "1e9"),
    *words("scaling_factor", DEEP, "[]", "0", "NaN", "1e999", "null", '"x"', "[1, 2]", "{}", "1e-320"),
    *words("shift_factor", "Infinity", "[0, 0]", ""),
    *words("height", "-8", "0", "1e3", "9" * 18, "9" * 5000),
    *words("spatial_factor", "0", "-1", "1000000000", "true"),
    *words("temporal_factor", "0", "-4", "4", "999999999999"),
    ("names with escapes", escaped),
    ("notes without end", word("source_notes", "x" * 60_000)),
    ("a source elsewhere", elsewhere),
    ("a source in /dev", word("source_path", "/dev/zero")),
    ("a source of no name", word("source_path", "a\0b")),
    ("a source of a long name", word("source_path", "x" * 5000)),
    ("another matrix", word("color_matrix", "../../x")),
    ("another version", word("format_version", "3")),
    ("an older version", word("format_version", "1")),
    ("no seal", without("header_sha256")),
    ("no fps", without("fps")),
    ("no times", without("times")),
    ("no metadata", without("__metadata__")),
    ("more tensors", entry("more", dtype="F32", shape=[0], data_offsets=[6440, 6440])),
    ("a shape that lies", entry("latents", shape=[5, 4, 8, 11])),
    ("a shape without end", entry("latents", shape=[5, 4, 2**62, 2**62])),
    ("a negative shape", entry("latents", shape=[-5, -4, 8, 10])),
    ("a shape of words", entry("latents", shape="5488")),
    ("offsets that lie", entry("times", data_offsets=[0, 40])),
    ("offsets beyond the end", entry("times", data_offsets=[6400, 2**63])),
    ("another type", entry("latents", dtype="F64")),
    ("whole numbers", entry("latents", dtype="I32")),
    ("a table too deep", lambda path, _: rewrite(path, lambda t: t.update(deep=[[[[[[[[[[[[[[[[{}]]]]]]]]]]]]]]]]))),
    ("times that go back", put(HEADER_BYTES + 6400, b"\xff" * 8)),
    ("a time beyond all films", put(HEADER_BYTES + 6400 + 32, b"\xff" * 7 + b"\x7f")),
    ("values that are no numbers", put(HEADER_BYTES, b"\xff" * 400)),
    ("a header of all the file", put(0, (1 << 40).to_bytes(8, "little"))),
    ("a header of nothing", put(0, bytes(8))),
    ("no text", put(8, b"\xff\xfe" * 40)),
    ("deep text", put(8, b"[" * (HEADER_BYTES - 8))),
    ("padding that says more", put(HEADER_BYTES - 4, b"x   ")),
    *((f"cut at {n}", cut(n)) for n in (0, 7, 8, 4000, HEADER_BYTES, HEADER_BYTES + 6400)),
    ("more bytes", lambda path, _: path.write_bytes(path.read_bytes() + b"x")),
    ("a pipe", replaced(lambda path, _: os.mkfifo(path))),
    ("a folder", replaced(lambda path, _: path.mkdir())),
    ("a link to another file", replaced(lambda path, decoy: path.symlink_to(decoy / "notes.txt"))),
    ("a link to itself", replaced(lambda path, _: path.symlink_to(path))),
    ("a pointer", replaced(lambda path, _: path.write_bytes(b"version https://git-lfs" * 9))),
    ("a large hole", lambda path, _: os.truncate(path, 1 << 40)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tamper"), chosen(CASES), ids=[name for name, _ in chosen(CASES)])
def test_a_tampered_file_is_a_film_or_a_sentence(
    name: str, tamper: Tamper, valid: tuple[Path, Path], tmp_path: Path
) -> None:
    decoy = make_decoy(tmp_path)
    path = tmp_path / "in" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(valid[1].read_bytes())
    tamper(path, decoy)
    before = snapshot(decoy)
    for verb in (
        ("inspect", path),
        ("inspect", path, "--json"),
        ("decode", path, "-o", tmp_path / "out" / "a.mp4", "--vae", valid[0]),
        ("decode", path, "-o", tmp_path / "out" / "b.mp4", "--vae", valid[0], "--any-vae", "--audio", "source"),
    ):
        call = command(*verb)
        assert is_orderly(call), (verb[0], call)
    assert snapshot(decoy) == before
    assert {file.name for file in tmp_path.rglob("*.mp4")} <= {"a.mp4", "b.mp4"}


def test_every_bit_of_the_header_counts(valid: tuple[Path, Path], tmp_path: Path) -> None:
    """Some bits of its text, of its length and of its padding, drawn anew each time."""
    whole = valid[1].read_bytes()
    length = len(whole[8:HEADER_BYTES].rstrip()) + 8
    places = [*range(8 * 8), *range(length * 8 - 16, length * 8 + 16)]
    places += random.Random().sample(range(length * 8), 60) + random.Random().sample(range(HEADER_BYTES * 8), 20)
    path = tmp_path / "a.safetensors"
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            LatentFile(path)


def test_a_file_that_is_replaced_is_read_as_it_was_and_one_that_is_changed_is_refused(
    valid: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = valid[1].read_bytes()
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    path.write_bytes(whole)
    file = LatentFile(path)
    other.write_bytes(whole[:100])
    os.replace(other, path)
    file.verify()
    assert torch.equal(torch.cat(list(file.chunks(2)), dim=1), torch.zeros(4, 5, 8, 10))
    for change in (lambda: os.truncate(path, HEADER_BYTES + 40), lambda: path.write_bytes(whole)):
        path.write_bytes(whole)
        file = LatentFile(path)
        os.utime(path, ns=(0, 0))  # an hour ago, where the clock of the disk is coarse
        change()
        with pytest.raises(CheckpointError, match="changed while"):
            file.read()


def test_names_are_shown_with_escapes(valid: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(valid[1].read_bytes())
    word("vae", ESCAPES)(path, tmp_path)
    said = command("inspect", path).out
    assert re.search(r"vae: +\\x1b\]0;pwn\\x07\\x1b\[2J\\x9b31m\\u202ex\\nfake: ok\n", said)
    assert json.loads(command("inspect", path, "--json").out)["metadata"]["vae"] == ESCAPES
