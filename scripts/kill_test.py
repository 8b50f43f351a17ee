"""Kills work at random moments, lets it go on, and compares every byte with work that nobody disturbed.

    python scripts/kill_test.py --model checkpoints/NAME --kills 20 [--frames 64] [--steps 20] [--json FILE]

In turn: a film from a prompt, a clip that is continued, a window made again, a small training, a folder of clips that
is encoded, and a finetuning of the model's decoder. A child process does it and dies by SIGKILL at a moment drawn from
--seed; another resumes it. Prints one line per kill; exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentvid.cli.main import main as main_of_cli
from latentvid.core.files import sha256_of
from latentvid.core.places import find_checkpoint
from latentvid.core.rng import Rng
from latentvid.film.extend import extend_clip
from latentvid.film.folder import RunFolder, run_path
from latentvid.film.generate import generate_film
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.loop import LoopConfig, train
from latentvid.training.task import Task
from latentvid.video.writer import VideoWriter

PROMPT = "slow clouds drifting left over hills at dusk"
COMPARED = ("windows/*", "carry/*", "drift.json", "preview.m3u8", "preview/*.ts")
VERBS = ("generate", "extend", "reroll", "train", "encode", "finetune")
FOOTAGE, CLIP_FRAMES, CROP = 5, 12, 32
"""Clips that are encoded and trained on, their frames, and the side of training crops."""
TRAINING = LoopConfig(steps=60, lr=0.05, warmup=2, ema_decay=0.9, log_every=4, save_every=10, validate_every=30)


@dataclass(frozen=True)
class Kill:
    """One film that was killed."""

    verb: str
    after_s: float
    num_complete: int
    """Windows that were finished by then; -1 where not even the run folder was."""
    different: list[str]
    """Files that differ from those of the undisturbed film; none is what is wanted."""


class Films:
    """What is made, undisturbed, and how to make it again."""

    def __init__(self, pipeline: LatentVideoPipeline, vae: Path, folder: Path, *, num_frames: int, steps: int) -> None:
        self.pipeline, self.vae, self.folder = pipeline, vae, folder
        self.num_frames, self.steps = num_frames, steps
        self.footage = folder / "footage"
        self.footage.mkdir()
        for number in range(FOOTAGE):
            write_footage(self.footage / f"{number}.mp4", number)
        self.clip = folder / "clip.mp4"
        generate_film(pipeline, PROMPT, self.clip, seed=99, num_inference_steps=steps, keep_run=False)
        self.seconds: dict[str, float] = {}
        self.wanted: dict[str, dict[str, str]] = {}
        for verb in VERBS:
            out = folder / verb / "film.mp4"
            self.prepare(verb, out)
            start = time.perf_counter()
            _in_child(lambda verb=verb, out=out: self.begin(verb, out), None)  # type: ignore[misc]
            self.seconds[verb] = time.perf_counter() - start
            self.wanted[verb] = hashes(out)

    def prepare(self, verb: str, out: Path) -> None:
        """Lay down what the verb starts from: for `reroll`, the film of `generate`."""
        shutil.rmtree(out.parent, ignore_errors=True)
        if verb == "reroll":
            shutil.copytree(self.folder / "generate", out.parent)
        else:
            out.parent.mkdir()

    def begin(self, verb: str, out: Path) -> None:
        """Do the verb's work, from its start or from where it was left."""
        if verb == "generate":
            generate_film(self.pipeline, PROMPT, out, num_frames=self.num_frames, num_inference_steps=self.steps)
        elif verb == "reroll":
            reroll_window(run_path(out), 0, prompt="sea at night", pipeline=self.pipeline)
        elif verb == "train":
            train(_Line(), TRAINING, out.parent / "training", device="cpu", resume=True)
        elif verb == "encode":
            latentvid("encode", self.footage, "-o", out.parent / "latents", "--vae", self.vae)
        elif verb == "finetune":
            latentvid(
                "finetune-decoder", self.footage, "-o", out.parent / "decoder", "--vae", self.vae, "--resume",
                "--steps", 6, "--crop", CROP, "--clip-frames", 4, "--set", "num_clips=8",
                "--set", "num_validation_clips=2", "--set", "loop.save_every=2", "--set", "loop.validate_every=3",
            )  # fmt: skip
        else:
            extend_clip(
                self.pipeline, self.clip, out, num_frames=self.num_frames, prompt=PROMPT, num_inference_steps=self.steps
            )

    def kill(self, verb: str, moment: float) -> Kill | None:
        """Kill one film at a share of its usual time and let it go on; None where it was finished by then."""
        out = self.folder / "killed" / "film.mp4"
        self.prepare(verb, out)
        after_s = moment * self.seconds[verb]
        if not _in_child(lambda: self.begin(verb, out), after_s):
            return None
        run = run_path(out)
        has_begun = (run / "run.json").is_file()
        num_complete = RunFolder.open(run).num_complete() if has_begun else -1
        if has_begun:
            _in_child(lambda: resume_film(run, pipeline=self.pipeline), None)
        if not has_begun or (verb == "reroll" and not RunFolder.open(run).record.rerolls):
            _in_child(lambda: self.begin(verb, out), None)
        found, wanted = hashes(out), self.wanted[verb]
        different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        return Kill(verb, round(after_s, 3), num_complete, different)


def latentvid(*words: object) -> None:
    """Run a verb on the CPU in silence; raise where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main_of_cli([*map(str, words), "--device", "cpu", "--quiet"])
    if code:
        raise RuntimeError(f"latentvid {words[0]} failed: {said.getvalue()}")


def write_footage(path: Path, seed: int) -> None:
    """Write a small clip of noise that moves."""
    ground = Rng(seed).uniform(3, 2 * CROP, 2 * CROP)[0]
    frames = torch.stack([ground.roll(2 * k, dims=2) for k in range(CLIP_FRAMES)]).mul(255).to(torch.uint8)
    with VideoWriter(path, fps=12, width=2 * CROP, height=2 * CROP) as writer:
        writer.write(frames)


class _Line(Task):
    """A straight line, fitted: a training that writes its files as any other."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 1)

    def batch(self, index: int) -> Tensor:
        return Rng(index).normal(4, 6)[0]

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(0.01)
        return (self.layer(batch) - batch.sum(dim=1, keepdim=True)).square().mean(), {}

    def export(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "line.safetensors")


def hashes(film: Path) -> dict[str, str]:
    """Return the hashes of a film and of what its run folder holds, window records aside: they tell the time.

    Of a training and a finetuning, those of what they export and of their last weights; of a folder that was encoded,
    those of the latents.
    """
    run, training = run_path(film), film.parent / "training"
    files = [file for pattern in COMPARED for file in run.glob(pattern) if file.suffix != ".json" or file.parent == run]
    files += [*training.glob("export/*"), *training.glob("state/*/model.safetensors"), *training.glob("result.json")]
    files += [*film.parent.glob("latents/**/*"), *film.parent.glob("decoder/*.safetensors")]
    files += film.parent.glob("decoder/run/*/export/*.safetensors")
    files += [film] if film.exists() else []
    return {file.relative_to(film.parent).as_posix(): sha256_of(file) for file in files if file.is_file()}


def kill_films(films: Films, kills: int, *, seed: int, tell: Callable[[Kill], None]) -> list[Kill]:
    """Kill `kills` films at moments drawn from `seed`."""
    draw, done = random.Random(seed), list[Kill]()
    while len(done) < kills:
        kill = films.kill(VERBS[len(done) % len(VERBS)], draw.uniform(0, 1))
        if kill is not None:
            done.append(kill)
            tell(kill)
    return done


def _in_child(work: Callable[[], object], kill_after_s: float | None) -> bool:
    """Do `work` in a fork of this process; return whether it was killed before it was done."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("something could not be made")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before any work: threads do not survive a fork
    pipeline = LatentVideoPipeline.from_pretrained(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        vae = find_checkpoint(arguments.model) / "vae"
        films = Films(pipeline, vae, Path(folder), num_frames=arguments.frames, steps=arguments.steps)
        kills = kill_films(films, arguments.kills, seed=arguments.seed, tell=_tell)
    bad = sum(bool(kill.different) for kill in kills)
    print(f"{len(kills)} kills, {len(kills) - bad} identical")
    if arguments.json:
        found = {
            "kills": [asdict(kill) for kill in kills],
            "num_identical": len(kills) - bad,
            "arguments": vars(arguments),
        }
        arguments.json.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    return int(bad > 0)


def _tell(kill: Kill) -> None:
    at = "of no run of a film" if kill.num_complete < 0 else f"with {kill.num_complete} windows"
    print(f"{kill.verb} after {kill.after_s:.2f} s, {at}: {', '.join(kill.different) or 'identical'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
