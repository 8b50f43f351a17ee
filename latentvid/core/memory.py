"""Bytes: read from a flag, free on a device, and the most that this process has held."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from latentvid.core.errors import UsageError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_\w*ALLOC|"
    r"unable to find an engine to execute",
    re.IGNORECASE,
)
_WANTED = re.compile(r"tried to allocate (\d+(?:\.\d+)? (?:[KMGT]i?B|bytes))", re.IGNORECASE)
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes that a size means; GB is 10^9 and GiB is 2^30.

    >>> parse_bytes("6GB"), parse_bytes("512 MiB"), parse_bytes("1.5g")
    (6000000000, 536870912, 1500000000)

    Raises:
        UsageError: not a positive size.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else ""
    if match is None or unit not in _UNITS or not float(match.group(1)):
        raise UsageError(f"size {text!r} is not understood; write it as 6GB, 512MiB or 1500M.")
    return int(float(match.group(1)) * _UNITS[unit])


def format_bytes(num_bytes: float) -> str:
    """Return a size for reading.

    >>> format_bytes(999), format_bytes(6_000_000_000), format_bytes(12_345_678)
    ('999 B', '6.0 GB', '12.3 MB')
    """
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def free_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes that can still be allocated on a device: cuda, else the host (within its cgroup's limit)."""
    if str(device).startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        # What the caching allocator holds and does not use is free to us as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_cgroup_free()])


def memory_failure(error: BaseException) -> str | None:
    """Return in a few words what an allocator's failure says, on the host or on a device; None for another error.

    Of an out-of-memory error of CUDA that is the size that did not fit: the rest of its text is advice on allocators.

    >>> memory_failure(MemoryError())
    'out of memory'
    >>> memory_failure(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"))
    'out of memory: 2.00 GiB more did not fit'
    """
    text = str(error).strip()
    if isinstance(error, RuntimeError):
        # Libraries below PyTorch say it in words of their own, and cuDNN where no algorithm's workspace fits.
        if not _NO_MEMORY.search(text):
            return None
    elif not isinstance(error, MemoryError):
        return None
    wanted = _WANTED.search(text)
    return f"out of memory: {wanted[1]} more did not fit" if wanted else "out of memory"


def peak_rss_bytes() -> int:
    """Return the largest resident size that this process has had."""
    if sys.platform == "linux":
        # Not ru_maxrss: that one is inherited from the parent over exec.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cgroup_free() -> list[int]:
    pairs = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for limit_file, used_file in pairs:
        try:
            limit, used = (Path(file).read_text(encoding="ascii").strip() for file in (limit_file, used_file))
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():
            return [max(0, int(limit) - int(used))]
    return []
