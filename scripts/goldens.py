"""Record what the package makes, and tell later whether it still makes the same: hashes of films, latents and weights.

    python scripts/goldens.py record goldens.json          before a change
    python scripts/goldens.py compare goldens.json         after it; exit code 1 where anything differs

A film of the shipped sky model in several windows, an extension of a clip, an extension of that film, a re-rolled
window, an encoded and decoded clip, a short finetuning and a few steps of training. Hashes are of this machine and this
PyTorch: floating point differs between others.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from latentvid.cli.main import main as latentvid
from latentvid.core.files import sha256_of, write_json
from latentvid.data.worlds.sky import render, sample_scene
from latentvid.video.reader import open_video
from latentvid.video.writer import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "checkpoints" / "sky")
FEW = ["--steps", "2", "--device", "cpu", "--dtype", "fp32", "--quiet"]
TRAINING = """kind: diffusion
vae: {vae}
init: {model}
videos: {{kind: world, name: sky, num_clips: 8, num_frames: 16, size: 64}}
options: {{video_share: 1.0, video_batch: 1, validation_clips: 2}}
loop: {{steps: 2, warmup: 0, validate_every: 2, save_every: 2, log_every: 1}}
"""


def run(*words: str | Path) -> None:
    """Run a verb; raise where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = latentvid([str(word) for word in words])
    if code:
        raise SystemExit(f"latentvid {' '.join(map(str, words))} ended with {code}:\n{said.getvalue()[-2000:]}")


def write_clip(path: Path, seed: int, num_frames: int, size: int = 64) -> None:
    frames = torch.from_numpy(render(sample_scene(seed), num_frames, size, size))
    with VideoWriter(path, fps=12, width=size, height=size) as writer:
        writer.write(frames)


def frames_of(path: Path) -> str:
    """Return a hash of a film's frames and times."""
    digest = hashlib.sha256()
    with open_video(path) as video:
        for frame in video.frames():
            digest.update(frame.pixels.numpy().tobytes())
            digest.update(str(frame.time_s).encode())
    return digest.hexdigest()


def of_film(film: Path) -> dict[str, str]:
    """Return the hashes of a film's bytes and frames, and of the latents of its windows."""
    found = {"bytes": sha256_of(film), "frames": frames_of(film)}
    windows = sorted((film.with_suffix(".run") / "windows").glob("*.safetensors"))
    return {**found, **{file.stem: tensors_of(file) for file in windows}}


def tensors_of(file: Path) -> str:
    """Return a hash of a safetensors file's tensors, whatever its header says beside."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def films(folder: Path) -> dict[str, dict[str, str]]:
    clip, film = folder / "clip.mp4", folder / "film.mp4"
    write_clip(clip, 5, 20)
    model = ["--model", MODEL, *FEW]
    found = {}
    run("generate", "slow clouds drifting left over hills at dusk", "-o", film, "--frames", "40", "--seed", "3", *model)
    found["film"] = of_film(film)
    run("extend", clip, "-o", folder / "longer.mp4", "--frames", "20", "--seed", "4", *model)
    found["extension"] = of_film(folder / "longer.mp4")
    run("extend", folder / "longer.mp4", "-o", folder / "longest.mp4", "--frames", "12", "--seed", "4", *model)
    found["extension of the extension"] = of_film(folder / "longest.mp4")
    run("reroll", folder / "film.run", "--window", "2", "--seed", "9", "--quiet")
    found["re-rolled"] = of_film(film)
    return found


def codec(folder: Path) -> dict[str, dict[str, str]]:
    clip, latents, again = folder / "coded.mp4", folder / "coded.safetensors", folder / "again.mp4"
    write_clip(clip, 6, 12)
    vae = ["--vae", f"{MODEL}/vae", "--device", "cpu", "--dtype", "fp32", "--quiet"]
    run("encode", clip, "-o", latents, *vae)
    run("decode", latents, "-o", again, *vae)
    return {"codec": {"latents": tensors_of(latents), "frames": frames_of(again)}}


def weights(folder: Path) -> dict[str, dict[str, str]]:
    footage = folder / "footage"
    footage.mkdir()
    for seed in range(3):
        write_clip(footage / f"{seed}.mp4", seed, 16)
    run("finetune-decoder", footage, "-o", folder / "decoder", "--vae", f"{MODEL}/vae", "--steps", "4",
        "--crop", "48", "--clip-frames", "6", "--set", "num_clips=12", "--set", "num_validation_clips=2",
                "--device", "cpu", "--quiet")  # fmt: skip
    recipe = folder / "recipe.yaml"
    recipe.write_text(TRAINING.format(vae=f"{MODEL}/vae", model=MODEL), encoding="utf-8")
    run("train", recipe, "-o", folder / "trained", "--device", "cpu", "--quiet")
    exported = folder / "trained" / "export" / "unet"
    return {
        "finetuning": {f.name: tensors_of(f) for f in sorted((folder / "decoder").glob("*.safetensors"))},
        "training": {f.name: tensors_of(f) for f in sorted(exported.glob("*.safetensors"))},
    }


PARTS = {"films": films, "codec": codec, "weights": weights}


def make(parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Make everything in a scratch folder and return its hashes by name."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="goldens-") as scratch:
        for name in parts:
            began, folder = time.monotonic(), Path(scratch) / name
            folder.mkdir()
            found |= PARTS[name](folder)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    found = make(arguments.parts)
    if arguments.what == "record":
        write_json(arguments.file, {"torch": torch.__version__, "goldens": found})
        return 0
    before = json.loads(arguments.file.read_text(encoding="utf-8"))["goldens"]
    different = 0
    for name, hashes in found.items():
        changed = [
            key for key in {**before.get(name, {}), **hashes} if before.get(name, {}).get(key) != hashes.get(key)
        ]
        print(f"{name}: {'the same' if not changed else 'DIFFERENT: ' + ', '.join(changed)}")
        different += len(changed)
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
