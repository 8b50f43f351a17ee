"""Makes a film by the command line in a process of its own, in which something gives out.

Run as a script: HOW MODEL OUT DEVICE DTYPE FRAMES. With HOW a number, the process dies by SIGKILL at that rename of a
file; with HOW `memory`, the device has no memory left when the second window is decoded.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from latentvid.cli.main import main
from latentvid.pipeline import LatentVideoPipeline


def die_at(number: int) -> None:
    real, count = os.replace, 0

    def replace(*paths: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)

    os.replace = replace  # type: ignore[assignment]


def starve(device: str) -> None:
    real, count = LatentVideoPipeline.decode_window, 0

    def decode_window(*arguments: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 2:
            if device == "cpu":
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 0.08 GiB of which "
                    "0 bytes is free. See documentation for Memory Management"
                )
            torch.cuda.set_per_process_memory_fraction(1e-3)
            torch.empty(1 << 30, dtype=torch.uint8, device=device)
        return real(*arguments)  # type: ignore[arg-type]

    LatentVideoPipeline.decode_window = decode_window  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    how, model, out, device, dtype, frames = sys.argv[1:]
    starve(device) if how == "memory" else die_at(int(how))
    words = ["generate", "clouds", "-o", out, "--model", model, "--frames", frames, "--steps", "2"]
    sys.exit(main([*words, "--device", device, "--dtype", dtype, "--quiet"]))
