"""Measures what verbs take before they compute: CPU time of imports and in all, modules, each in a process of its own.

    python scripts/bench_startup.py [--vae taesd] [--model sky] [--rounds 5]

Verbs take turns with `import torch` alone; times are user and system time of the CPU, medians over the rounds. Import
time is that of the outermost import statements, and what Python takes until the first of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

TORCH = "import torch"
VERB = """
import builtins, importlib, sys, time
spent, begun, depth = 0.0, time.process_time(), 0
def timed(load):
    def imported(*names, **more):
        global spent, depth
        depth, before = depth + 1, time.process_time()
        try:
            return load(*names, **more)
        finally:
            depth -= 1
            spent += 0 if depth else time.process_time() - before
    return imported
builtins.__import__, importlib.import_module = map(timed, (builtins.__import__, importlib.import_module))
from latentvid.cli.main import main
code = main({words})
if code: sys.exit(code)
"""
REPORT = """
import json, sys, time
found = dict(total_s=time.process_time(), modules=len(sys.modules))
found["imports_s"] = begun + spent if "spent" in globals() else found["total_s"]
print("\\n" + json.dumps(found))
"""


def main() -> int:
    """Measure all verbs and print the table."""
    parser = argparse.ArgumentParser(description="Measure what verbs take before they compute.")
    parser.add_argument("--vae", default="taesd", help="autoencoder for encode and decode")
    parser.add_argument("--model", default="sky", help="model for generate and extend, and the second autoencoder")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_clip(folder / "clip.mp4")
        programs = {"import torch": TORCH}
        for label, words in _verbs(folder, arguments.vae, arguments.model).items():
            programs[label] = VERB.format(words=[*map(str, words)])
        found: dict[str, list[dict[str, float]]] = {label: [] for label in programs}
        for _ in range(arguments.rounds):
            for label, program in programs.items():
                found[label].append(_measured(program))
    print("| | imports | in all | modules |\n|---|---:|---:|---:|")
    for label, results in found.items():
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        print(f"| {label} | {middle['imports_s']:.2f} | {middle['total_s']:.2f} | {middle['modules']:.0f} |")
    return 0


def _verbs(folder: Path, vae: str, model: str) -> dict[str, Sequence[object]]:
    clip, options = folder / "clip.mp4", ("--device", "cpu", "--overwrite", "-q")
    short = ("--model", model, "--frames", 2, "--steps", 1, *options)
    verbs: dict[str, Sequence[object]] = {"inspect a clip": ("inspect", clip)}
    for number, name in enumerate((vae, model)):
        latents, film = folder / f"{number}.safetensors", folder / f"{number}.mp4"
        verbs[f"encode, {Path(name).name}"] = ("encode", clip, "-o", latents, "--vae", name, *options)
        verbs[f"decode, {Path(name).name}"] = ("decode", latents, "-o", film, "--vae", name, *options)
    return verbs | {
        "inspect latents": ("inspect", folder / "0.safetensors"),
        "inspect a checkpoint": ("inspect", model),
        "drift": ("drift", clip, "-q"),
        "generate": ("generate", "a blue sky", "-o", folder / "made.mp4", *short),
        "extend": ("extend", clip, "-o", folder / "longer.mp4", *short),
    }


def _measured(program: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program + REPORT]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    measured: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return measured


def _write_clip(path: Path) -> None:
    import torch

    from latentvid.video.writer import VideoWriter

    frames = torch.zeros(8, 3, 64, 64)
    for number, frame in enumerate(frames):
        frame[:, number : number + 10] = 1  # a bar that falls
    with VideoWriter(path, fps=Fraction(8), width=64, height=64) as writer:
        writer.write(frames)


if __name__ == "__main__":
    sys.exit(main())
