"""Sizes read from flags, and what the process and its machine report about memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from latentvid.core.errors import UsageError
from latentvid.core.memory import format_bytes, free_memory, memory_failure, parse_bytes, peak_rss_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GB", 6 * 10**9), ("6GiB", 6 * 2**30), ("512m", 512 * 10**6), ("1.5 KB", 1500), ("2TB", 2 * 10**12), ("77", 77)],
)
def test_parses_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "6XB", "six", "0", "0GB", "1e9", "6GB!", "3I", "nan", "1,5GB"])
def test_refuses_other_text(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        parse_bytes(text)


def test_formats_are_short() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(2.5e12) == "2.5 TB"


def test_the_peak_is_that_of_this_process_and_never_falls() -> None:
    code = (
        "from latentvid.core.memory import peak_rss_bytes as p\n"
        "a = p(); x = bytearray(80_000_000); b = p(); del x; c = p(); print(a, b, c)"
    )
    kept = bytearray(200_000_000)  # a peak that the child must not inherit
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, during, after = map(int, run.stdout.split())
    assert before < 80_000_000
    assert 75_000_000 < during - before < 90_000_000
    assert after > 0.98 * during  # the kernel counts in batches of pages
    assert peak_rss_bytes() > len(kept)


def test_the_host_has_some_memory_free() -> None:
    assert 1 << 20 < free_memory("cpu") < 1 << 50


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory"),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), "out of memory"),
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes. Error"), "9 bytes more did not fit"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_allocators_say_is_understood(error: BaseException, words: str | None) -> None:
    found = memory_failure(error)
    assert (found is None) == (words is None)
    assert (words or "") in (found or "")
