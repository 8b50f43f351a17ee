"""Every file of data/awkward through `inspect` and `encode`, as a user would call them: what each says, and how long.

    LATENTVID_TEST_ASSETS=../shared python scripts/try_awkward.py

Ends with 1 where a file ends in anything but latents or one sentence: a traceback, another exit code, a leftover.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

from latentvid.cli.main import main
from latentvid.cli.output import columns

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = {0, 3}
"""Done, or an input that cannot be read."""


def run(words: list[str]) -> tuple[int, float, str, str]:
    """Return the exit code, the seconds, and what was said on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, time.perf_counter() - start, out.getvalue().strip(), err.getvalue().strip()


def why_wrong(code: int, said: str, folder: Path) -> str:
    """Return what is wrong with how a file ended, "" for nothing."""
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    checks = {
        "exit code": code not in EXPECTED,
        "traceback": "Traceback" in said or "internal error" in said,
        "more than one sentence": code != 0 and len(lines) != 1,
        f"left {files}": len(files) != (1 if code == 0 else 0),
    }
    return ", ".join(name for name, is_wrong in checks.items() if is_wrong)


def try_file(path: Path, vae: Path, max_frames: int) -> tuple[list[str], list[str]]:
    """Return a row of the table, and what is wrong."""
    inspected, _, _, told = run(["inspect", str(path), "--json"])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "latents.safetensors"
        words = ["encode", str(path), "-o", str(target), "--vae", str(vae), "--max-frames", str(max_frames), "--quiet"]
        code, seconds, result, said = run(words)
        wrong = [why_wrong(code, said, Path(folder))]
        if inspected not in EXPECTED or "Traceback" in told:
            wrong.append(f"inspect ended with {inspected}: {told}")
    text = " | ".join([*([result.split(", ")[-1]] if result else []), *said.splitlines()])
    text = text.replace(f"{path.parent}{os.sep}", "").replace("warning: ", "")
    found = [f"{path.name}: {w}" for w in wrong if w]
    return [path.name, str(inspected), str(code), f"{seconds:.1f}", text], found


def run_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    assets = Path(os.environ.get("LATENTVID_TEST_ASSETS", ROOT / ".." / "shared")).resolve()
    parser.add_argument("--folder", type=Path, default=assets / "data" / "awkward")
    parser.add_argument("--vae", type=Path, default=assets / "weights" / "taesd")
    parser.add_argument("--max-frames", type=int, default=1, help="0: whole clips; a frame of 1280x720 is 0.7 TFLOP")
    options = parser.parse_args()
    rows, wrong = [["file", "inspect", "encode", "seconds", "frames, or sentence"]], []
    for path in sorted(options.folder.iterdir()):
        row, found = try_file(path, options.vae, options.max_frames)
        rows.append(row)
        wrong += found
        print(f"{path.name}: {row[3]} s", file=sys.stderr, flush=True)
    print(columns(rows))
    print("\n".join(wrong) or f"{len(rows) - 1} files: each gave latents or one sentence, and none left anything else.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(run_all())
