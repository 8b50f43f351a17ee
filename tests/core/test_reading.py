"""Files of others within bounds, and their words fit for a terminal."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentvid.core.errors import InputError, LatentVidError, as_known
from latentvid.core.reading import parse_json, read_json, read_start, read_text
from latentvid.core.text import printable, shown, utf8


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"x" * 101), "larger than"),
        (lambda path: (path.touch(), os.truncate(path, 3 << 30)), "larger than"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ],
)
def test_what_is_no_text_of_reasonable_size_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path, start = tmp_path / "a", time.monotonic()
    make(path)
    with pytest.raises(InputError, match=why):
        read_text(path, max_bytes=100)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have_are_no_files(name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_start(name, 1)


def test_text_is_read_without_its_mark_and_starts_without_their_rest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "a", max_bytes=100) == "é"
    os.truncate(tmp_path / "a", 1 << 40)
    assert read_start(tmp_path / "a", 6) == "\ufeffé".encode() + b"\0"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 66 + "]" * 66, '{"a":' * 500 + "1" + "}" * 500, "1" * 5000, "-" + "1" * 65, "{", ""]
)
def test_json_is_of_bounded_depth_and_numbers(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    assert parse_json("[" * 60 + '"[[["' + "]" * 60)


def test_what_commands_a_terminal_is_shown_and_not_obeyed() -> None:
    assert shown("a\x1b[2J\x07\x7f\x9b\u202e\u2028\udce9\ud800\tb") == (
        "a\\x1b[2J\\x07\\x7f\\x9b\\u202e\\u2028\\xe9\\ud800\\tb"
    )
    assert shown("one\r\ntwo\n", lines=True) == "one\\r\ntwo\n"
    assert shown(shown("é 日本\u00a0\x1b")) == shown("é 日本\u00a0\x1b") == "é 日本\u00a0\\x1b"
    assert printable("é\udce9", "ascii") == "\\xe9\\udce9"
    assert utf8(os.fsdecode(b"latin_\xe9 50%.png")) == "latin_%E9 50%.png"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecursionError(), 3),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), 3),
        (ValueError("embedded null byte"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2),
        (OSError(errno.ENOENT, "No such file or directory", "x"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 5),
        (OSError(errno.EMFILE, "Too many open files"), 5),
        (MemoryError(), 5),
    ],
)
def test_failures_of_the_system_have_codes(error: Exception, code: int) -> None:
    known = as_known(error)
    assert isinstance(known, LatentVidError)
    assert known.exit_code == code
    assert as_known(ValueError("anything else")) is None
