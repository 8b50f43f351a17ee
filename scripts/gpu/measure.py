"""Measure the networks and the film loop on this machine, one item after another, within a time limit.

    python -m scripts.gpu.measure --out FOLDER [--seconds 240] [--items ceilings,unet_256] [--device cpu --tiny]

Run from the repository's root; `scripts/on_gpu.py` runs it with a limit of its own. Writes FOLDER/measure.json anew
after each item, so that what was measured is kept whatever happens next. An item that fails, or whose time is up, is
noted and does not stop the next. Networks have random weights of the published sizes; inputs are drawn anew and take
turns; times are medians. `--tiny` shrinks everything to what a CPU does in seconds: for trying the script, not to read
numbers from.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch


class TimeUp(BaseException):
    """An item's time is over. No Exception, so that nothing in between takes it for a fault of its own."""


@dataclass
class Bench:
    """What items share: the device, the sizes, where files go, and what earlier items found."""

    device: torch.device
    out: Path
    is_tiny: bool = False
    matmul_flops: float = 0.0
    """Measured ceiling, operations per second."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Networks that more than one item uses."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_cuda else torch.float32

    def pick(self, full: Any, tiny: Any) -> Any:
        return tiny if self.is_tiny else full

    def sync(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def share(self, flops: float, seconds: float) -> float:
        """Return operations per second as a share of the measured ceiling."""
        return flops / seconds / self.matmul_flops if self.matmul_flops else 0.0

    def seconds_of(self, call: Callable[[Any], Any], inputs: Sequence[Any], *, limit_s: float = 2.0) -> float:
        """Return the median seconds of a call, after warm-ups; the inputs take turns."""
        limit_s = self.pick(limit_s, 0.0)
        for k in range(self.pick(3, 1)):
            call(inputs[k % len(inputs)])
        self.sync()
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < self.pick(5, 1) or (time.perf_counter() - began < limit_s and len(taken) < 50):
            given = inputs[len(taken) % len(inputs)]
            if self.is_cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call(given)
                end.record()
                end.synchronize()
                taken.append(start.elapsed_time(end) / 1000)
            else:
                start_s = time.perf_counter()
                call(given)
                taken.append(time.perf_counter() - start_s)
        return statistics.median(taken)

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Yield what tells the bytes that the block held at its peak, above what was held before it; 0 on a CPU."""
        self.free()
        before = torch.cuda.memory_allocated() if self.is_cuda else 0
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() - before if self.is_cuda else 0

    def free(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


Item = Callable[[Bench], dict[str, Any]]
COMPILED = ((512, "contiguous"), (512, "channels last"), (256, "contiguous"))


def ceilings(bench: Bench) -> dict[str, Any]:
    """What the card does at best: a large matrix product, and a copy that counts bytes read and written."""
    side = bench.pick(8192, 128)
    pairs = [(bench.random(side, side), bench.random(side, side)) for _ in range(3)]
    seconds = bench.seconds_of(lambda pair: pair[0] @ pair[1], pairs)
    bench.matmul_flops = 2 * side**3 / seconds
    values = bench.pick(1 << 31, 1 << 16)
    source = torch.randn(values // 4, device=bench.device)
    target = torch.empty_like(source)
    copying = bench.seconds_of(target.copy_, [source], limit_s=1)
    host = torch.randn(values // 64)
    pinned = host.pin_memory() if bench.is_cuda else host
    device_side = host.to(bench.device)
    to_host = bench.seconds_of(lambda x: x.cpu(), [device_side], limit_s=0.5)
    to_pinned = bench.seconds_of(lambda x: pinned.copy_(x), [device_side], limit_s=0.5)
    copy, host_rate, pinned_rate = 2 * source.nbytes / copying, host.nbytes / to_host, host.nbytes / to_pinned
    return {
        "matmul_tflops": bench.matmul_flops / 1e12,
        "copy_gb_per_s": copy / 1e9,
        "to_host_gb_per_s": host_rate / 1e9,
        "to_pinned_host_gb_per_s": pinned_rate / 1e9,
        "lines": [
            f"matrix product {bench.matmul_flops / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s",
            f"to host {host_rate / 1e9:.1f} GB/s, pinned {pinned_rate / 1e9:.1f} GB/s",
        ],
    }


def films(kind: str) -> Item:
    """Return an item of `film_costs`, which is loaded when it is needed: it imports the whole package."""

    def item(bench: Bench) -> dict[str, Any]:
        from scripts.gpu import film_costs

        return getattr(film_costs, kind)(bench)

    return item


def networks(kind: str, *sizes: Any) -> Item:
    """Return an item of `network_costs`."""

    def item(bench: Bench) -> dict[str, Any]:
        from scripts.gpu import network_costs

        return getattr(network_costs, kind)(bench, *sizes)

    return item


ITEMS: dict[str, tuple[float, Item]] = {
    "ceilings": (20, ceilings),
    "unet_256": (40, networks("unet_variants", 256)),
    "unet_512": (40, networks("unet_variants", 512)),
    "unet_profile": (25, networks("unet_profile", 512)),
    "film_sky": (90, films("film_sky")),
    "decoder": (60, networks("decoders")),
    "film_large": (60, films("film_large")),
    "unet_compiled": (110, networks("unet_compiled", *COMPILED)),
}
"""Seconds at most, and what is measured; in order of importance, but what may take long for nothing comes last."""


def measure(
    bench: Bench,
    names: Sequence[str],
    *,
    seconds: float = math.inf,
    items: dict[str, tuple[float, Item]] | None = None,
    appends: bool = False,
) -> dict[str, Any]:
    """Run items one after another; return what `measure.json` holds.

    Args:
        seconds: for all; an item that would begin with under a tenth of its own time left is left out.
        items: instead of `ITEMS`.
        appends: keep what the file holds already, and do not measure that again.
    """
    items = ITEMS if items is None else items
    target = bench.out / "measure.json"
    bench.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": str(bench.device), "is_tiny": bench.is_tiny, "items": {}}
    if appends and target.is_file():
        found["items"] = json.loads(target.read_text(encoding="utf-8"))["items"]
        bench.matmul_flops = 1e12 * found["items"].get("ceilings", {}).get("matmul_tflops", 0.0)
    began = time.monotonic()
    for name in names:
        if name in found["items"]:
            continue
        most, item = items[name]
        left = seconds - (time.monotonic() - began)
        most = min(most, left)
        if left < items[name][0] / 10:
            found["items"][name] = {"ok": False, "error": "no time was left"}
            continue
        start = time.monotonic()
        found["items"][name] = {"ok": False, "error": "the process ended while this was measured"}
        write_json(target, found)
        try:
            with time_box(most):
                result = {"ok": True, **item(bench)}
        except TimeUp:
            result = {"ok": False, "error": f"not done after {most:.0f} s", **bench.kept.pop(f"{name}.partial", {})}
        except Exception as error:
            traceback.print_exc()
            what = (str(error).strip().splitlines() or [""])[0]
            partial = bench.kept.pop(f"{name}.partial", {})
            result = {"ok": False, "error": f"{type(error).__name__}: {what}"[:500], **partial}
        result["seconds"] = round(time.monotonic() - start, 3)
        found["items"][name] = result
        write_json(target, found)
        for line in lines_of(name, result):
            print(line, flush=True)
        if _has_lost_device(result):
            break  # nothing more can be done in this process; another one goes on
        bench.free()
    write_json(target, found)
    return found


def _has_lost_device(result: dict[str, Any]) -> bool:
    """Tell whether an item failed in such a way that every later use of the device in this process fails too."""
    return not result["ok"] and "CUDA error" in json.dumps(result, default=str)


def lines_of(name: str, result: dict[str, Any]) -> list[str]:
    """Return what the table says of an item."""
    failed = [] if result.get("ok") else [f"FAILED: {result.get('error')}"]
    return [f"{name:14} {line}" for line in [*result.get("lines", []), *failed]]


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the block after so long; only in a process's main thread, where signals arrive."""
    if (
        math.isinf(seconds)
        or threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "SIGALRM")
    ):
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_json(target: Path, data: Any) -> None:
    """Write a file that is never seen half-written."""
    beside = target.with_name(f".{target.name}.new")
    beside.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(beside, target)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--append", action="store_true", help="keep what measure.json holds already")
    parser.add_argument("--items", default=",".join(ITEMS), help="names, divided by commas")
    arguments = parser.parse_args(argv)
    names = arguments.items.split(",")
    unknown = [name for name in names if name not in ITEMS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not known; known: {', '.join(ITEMS)}")
    torch.manual_seed(time.time_ns() % (1 << 31))
    bench = Bench(torch.device(arguments.device), arguments.out, arguments.tiny)
    found = measure(bench, names, seconds=arguments.seconds, appends=arguments.append)
    if any(name not in found["items"] for name in names):
        return 5
    return 0 if all(item["ok"] for item in found["items"].values()) else 6


if __name__ == "__main__":
    raise SystemExit(main())
