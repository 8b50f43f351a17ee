"""Makes a film in child processes that are killed at a given file operation, again and again, until it is finished.

Run as a script: MODEL OUT STRIDE. Child n dies by SIGKILL at its (STRIDE + n)-th rename; the last word on stdout is
how many children it took.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(model: str, out: Path, stride: int, extend: Path | None) -> int:
    import torch

    # Before any work, so that no thread is lost when the process forks.
    torch.set_num_threads(1)
    from latentvid.film.extend import extend_clip
    from latentvid.film.folder import run_path
    from latentvid.film.generate import generate_film, resume_film
    from latentvid.pipeline import LatentVideoPipeline

    pipeline = LatentVideoPipeline.from_pretrained(model)

    def child(limit: int) -> None:
        real, count = os.replace, 0

        def replace(*paths: str) -> None:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*paths)

        os.replace = replace  # type: ignore[assignment]
        if (run_path(out) / "run.json").is_file():
            resume_film(run_path(out), pipeline=pipeline)
        elif extend is not None:
            extend_clip(pipeline, extend, out, num_frames=16, num_inference_steps=2)
        else:
            generate_film(pipeline, "clouds", out, num_frames=30, num_inference_steps=2)

    children = 0
    while children < 60:
        children += 1
        pid = os.fork()
        if pid == 0:
            child(stride + children % 3)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return children
    raise SystemExit("never finished")


if __name__ == "__main__":
    wanted = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    sys.stdout.write(f"{main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), wanted)}\n")
