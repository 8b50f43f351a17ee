"""Makes a film in child processes that are killed at a given file operation, again and again, until it is finished.

Run as a script: MODEL OUT STRIDE [CLIP | reroll]. Child n dies by SIGKILL at its (9 STRIDE + n % 7)-th operation, with
`reroll` at its (STRIDE + 7 n)-th; the last word on stdout is how many children it took.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("replace", "rename", "link", "unlink", "rmdir", "fsync")


def die_at(limit: int) -> None:
    """Let this process die, by SIGKILL, at its `limit`-th operation on files."""
    count = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)

        return call

    for name in OPERATIONS:
        setattr(os, name, counting(getattr(os, name)))


def in_children(work: Callable[[], object], limit: Callable[[int], int], most: int = 90) -> int:
    """Do `work` in one forked process after another until one is not killed; return how many it took."""
    children = 0
    while children < most:
        children += 1
        pid = os.fork()
        if pid == 0:
            die_at(limit(children))
            work()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return children
    raise SystemExit("never finished")


def main(model: str, out: Path, stride: int, what: str | None) -> int:
    import torch

    # Before any work, so that no thread is lost when the process forks.
    torch.set_num_threads(1)
    from latentvid.film.extend import extend_clip
    from latentvid.film.folder import RunFolder, run_path
    from latentvid.film.generate import generate_film
    from latentvid.film.reroll import reroll_window
    from latentvid.film.resume import resume_film
    from latentvid.pipeline import LatentVideoPipeline

    pipeline = LatentVideoPipeline.from_pretrained(model)
    run = run_path(out)

    def make() -> None:
        if (run / "run.json").is_file():
            resume_film(run, pipeline=pipeline)
        elif what is not None:
            extend_clip(pipeline, Path(what), out, num_frames=16, num_inference_steps=2)
        else:
            generate_film(pipeline, "clouds", out, num_frames=30, num_inference_steps=2)

    def make_again() -> None:
        resume_film(run, pipeline=pipeline)
        if not RunFolder.open(run).record.rerolls:
            reroll_window(run, 1, pipeline=pipeline, prompt="sea at night")

    if what == "reroll":
        return in_children(make_again, lambda number: stride + 7 * number)
    return in_children(make, lambda number: 9 * stride + number % 7)


if __name__ == "__main__":
    wanted = sys.argv[4] if len(sys.argv) > 4 else None
    sys.stdout.write(f"{main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), wanted)}\n")
