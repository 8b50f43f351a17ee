"""Everything that needs a GPU, in one go on a lent machine: tests, measurements, a short training.

    python scripts/on_gpu.py --out FOLDER [--stages prove,measure] [--limits measure=280] [--packages .whl] [--pack]
    python scripts/on_gpu.py --out FOLDER --tiny --device cpu          a rehearsal, without a GPU

Stages: `prove` runs the tests marked gpu, `measure` scripts/gpu/measure.py, `train` scripts/train_sky_gpu.py. Each runs
in a process group of its own, which is killed when its seconds (--limits) are over; what it has found by then is kept,
and the next stage begins. FOLDER/results.json is written anew all the time. `--packages` names the folder that
scripts/gpu_wheels.sh made, for machines that lack packages and have no index. With `--pack` FOLDER gets no more than
eight files of under 16 MB: results.json, summary.txt, and an archive in pieces
(`cat files.tar.gz.* | tar xz`). Exit code 0 if all stages succeeded, else 6.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"prove": 120.0, "measure": 280.0, "train": 170.0}
"""Seconds of each stage, in the order in which they run."""
PIECE_BYTES, MOST_PIECES = 15 << 20, 4
WORKERS = 6
"""Processes that tests run in side by side."""
SOME_FAILED = 6
"""Exit code where some of several things failed."""
MODULES = {"pyyaml": "yaml", "pillow": "PIL"}
"""Packages whose module has another name."""
STARTUP_S = 12.0
"""Of a process that imports PyTorch on a machine that has not done so before."""
GRACE_S = 3.0
"""Between asking a stage to stop and killing it."""
_OUTCOMES = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
_OUTCOME = re.compile(rf"^(?P<name>\S+::.+?) (?P<outcome>{_OUTCOMES})\b")
_OF_WORKER = re.compile(rf"^\[gw\d+\] \[ *\d+%\] (?P<outcome>{_OUTCOMES}) (?P<name>\S+::.+?) *$")
_BECAUSE = re.compile(r"^(FAILED|ERROR) (\S+)(?: - (.*))?$")


@dataclass
class Session:
    """One run of this script."""

    out: Path
    """Where results end up."""
    work: Path
    """Where stages write; `out` itself, unless results are packed."""
    device: str
    is_tiny: bool
    packages: Path | None = None
    """Folder of unpacked packages that stages find beside the interpreter's own."""
    results: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Write results.json and summary.txt, never half of one."""
        texts = {
            "results.json": json.dumps(self.results, indent=2, default=str),
            "summary.txt": "\n".join(self.summary()),
        }
        for name, text in texts.items():
            beside = self.out / f".{name}.new"
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, self.out / name)

    def summary(self) -> list[str]:
        """Return the short table."""
        machine = self.results.get("machine", {})
        lines = [", ".join(str(machine.get(name)) for name in ("card", "driver", "torch", "python", "commit"))]
        if machine.get("missing"):
            lines.append(f"missing on this machine: {', '.join(machine['missing'])}")
        for name, stage in self.results.get("stages", {}).items():
            lines.append(f"{name}: {stage['state']} in {stage.get('seconds', 0):.0f} s")
            lines += [f"  {line}" for line in stage.get("lines", [])]
        return lines

    def environment(self) -> dict[str, str]:
        places = [str(ROOT), *([str(self.packages)] if self.packages else []), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(place for place in places if place),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }


def prove(session: Session, seconds: float) -> list[str]:
    """The tests marked gpu; on a CPU they skip themselves, which is no more than a rehearsal."""
    words = ["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-rfE", "--color=no", "-p", "no:cacheprovider"]
    # Tests are small beside a GPU; side by side they share it, and start-up and compilation go on at once.
    if find_spec("xdist") and not session.is_tiny:
        words += ["-n", str(max(1, min(WORKERS, (os.cpu_count() or 2) // 2)))]
    # Only files that have some are collected: importing all others takes longer than these tests do.
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    where = [str(file.relative_to(ROOT)) for file in files] or ["tests"]
    return [*words, "--continue-on-collection-errors", *where]


def read_tests(session: Session, log: Path) -> dict[str, Any]:
    """Count the outcomes that pytest wrote so far, one line each."""
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if seen := _OUTCOME.match(line) or _OF_WORKER.match(line):
            outcomes[seen["name"]] = seen["outcome"].lower()
        elif seen := _BECAUSE.match(line):
            reasons[seen[2]] = (seen[3] or "")[:300]
            outcomes.setdefault(seen[2], seen[1].lower())
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome] = counts.get(outcome, 0) + 1
    bad = [name for name, outcome in outcomes.items() if outcome in ("failed", "error")]
    lines = [", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no test ran"]
    return {
        "counts": counts,
        "tests": outcomes,
        "failures": {name: reasons.get(name, "") for name in bad},
        "lines": lines + [f"FAILED {name}: {reasons.get(name, '')[:160]}" for name in bad],
    }


def measure(session: Session, seconds: float) -> list[str]:
    """The measurements; those with a result are not made again."""
    words = ["-m", "scripts.gpu.measure", "--out", str(session.work / "measure"), "--device", session.device]
    # Less than there is: it counts from when it is loaded, and what it stops by itself keeps what it found.
    return [*words, "--seconds", str(round(max(1.0, 0.97 * seconds - STARTUP_S), 1)), "--append", *_tiny(session)]


def read_measure(session: Session, _: Path) -> dict[str, Any]:
    path = session.work / "measure" / "measure.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for name, item in found["items"].items():
        failed = [] if item.get("ok") else [f"FAILED: {item.get('error')}"]
        lines += [f"{name:14} {line}" for line in [*item.get("lines", []), *failed]]
    return {"items": found["items"], "lines": lines}


def train(session: Session, seconds: float) -> list[str]:
    """The short training; it is told to stop a little before its limit."""
    words = [str(ROOT / "scripts" / "train_sky_gpu.py"), "--out", str(session.work / "train")]
    if session.work != session.out:  # its states are not what should come back
        words += ["--runs", str(session.work.parent / "runs")]
    seconds = int(max(1.0, seconds - max(10.0, 0.1 * seconds)))
    return [*words, "--seconds", str(seconds), "--device", session.device, *_tiny(session)]


def read_train(session: Session, log: Path) -> dict[str, Any]:
    """Return the results that the training wrote, if any, and the last lines of its log."""
    found: dict[str, Any] = {}
    results = session.work / "train" / "train.json"
    if results.is_file():
        found["results"] = json.loads(results.read_text(encoding="utf-8"))
    return {**found, "lines": log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]}


Command = Callable[[Session, float], list[str]]
"""(session, seconds left) -> what Python is to run."""
Read = Callable[[Session, Path], dict[str, Any]]
"""(session, log) -> what the stage found so far; `lines` of it are shown."""
STAGES: dict[str, tuple[Command, Read]] = {
    "prove": (prove, read_tests),
    "measure": (measure, read_measure),
    "train": (train, read_train),
}


def _tiny(session: Session) -> list[str]:
    return ["--tiny"] if session.is_tiny else []


def run_stage(session: Session, name: str, seconds: float) -> None:
    """Run one stage, and put what it finds into the results while it does."""
    command, read = STAGES[name]
    log = session.work / f"{name}.log"
    entry: dict[str, Any] = {"state": "running", "limit_s": seconds}
    session.results["stages"][name] = entry
    began = time.monotonic()

    def look() -> None:
        try:
            entry.update(read(session, log))
        except (OSError, ValueError, KeyError) as error:
            entry["unread"] = f"{type(error).__name__}: {error}"
        entry["seconds"] = round(time.monotonic() - began, 1)
        session.save()

    def stage(left: float) -> list[str]:
        return [sys.executable, *command(session, left)]

    script = Path(stage(seconds)[1])
    if script.suffix == ".py" and not script.is_file():
        entry.update(state=f"not run: {script.name} is not there", lines=[])
        session.save()
        return
    log.touch()
    code: int | None = 0
    for attempt in range(4):
        left, known = seconds - (time.monotonic() - began), len(entry.get("items", ()))
        code = run_within(stage(left), log, left, look, environment=session.environment())
        look()
        # A process that crashed, or lost the device, leaves what it did not come to to another.
        if name != "measure" or code in (None, 0, SOME_FAILED) or len(entry.get("items", ())) == known or attempt == 3:
            break
    entry["state"] = {None: "killed at its limit", 0: "done"}.get(code, f"failed with exit code {code}")
    if code != 0 and not entry.get("lines"):
        entry["lines"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    session.save()


def run_within(
    command: Sequence[str], log: Path, seconds: float, look: Callable[[], None], *, environment: dict[str, str]
) -> int | None:
    """Run a command in a process group of its own for so long at most, its output into `log` and onto ours.

    Args:
        look: called about once a second.

    Returns:
        Its exit code; None where it had to be killed.
    """
    with log.open("ab") as out, log.open("rb") as shown:
        shown.seek(0, os.SEEK_END)
        group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}
        process = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            **group,
        )
        end, next_look = time.monotonic() + seconds, 0.0
        try:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
                _show(shown)
                if time.monotonic() > next_look:
                    look()
                    next_look = time.monotonic() + 1
            is_late = process.poll() is None
        finally:
            _end(process)
        _show(shown)
    return None if is_late else process.returncode


def _show(log: Any) -> None:
    new = log.read()
    if new:
        sys.stdout.write(new.decode("utf-8", "replace"))
        sys.stdout.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for sign, wait in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, sign)
        except (ProcessLookupError, PermissionError):
            break  # the whole group is gone
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10.0)


def machine(session: Session) -> dict[str, Any]:
    """Describe the machine, and name what it lacks; asked in a process of its own, which may fail."""
    code = (
        "import json, torch\ncuda = torch.cuda.is_available()\n"
        "p = torch.cuda.get_device_properties(0) if cuda else None\n"
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, 'has_device': cuda, "
        "'card': p.name if p else None, 'card_bytes': p.total_memory if p else None, "
        "'cudnn': torch.backends.cudnn.version() if cuda else None}))"
    )
    about: dict[str, Any] = {"python": sys.version.split()[0], "cores": os.cpu_count()}
    said = _ask([sys.executable, "-c", code], session.environment(), seconds=90)
    about |= json.loads(said.splitlines()[-1]) if said else {"torch": None, "has_device": False, "card": None}
    words = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    about["driver"] = _ask(words, session.environment())
    about["commit"] = _ask(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], session.environment())
    about["compilers"] = [name for name in ("nvcc", "c++", "g++", "gcc", "ninja") if shutil.which(name)]
    about["missing"] = missing(session.packages, has_device=about["has_device"], wants_device=session.device != "cpu")
    return about


def missing(packages: Path | None, *, has_device: bool, wants_device: bool = True) -> list[str]:
    """Return what the stages would look for in vain."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needs = re.search(r"^dependencies = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    names = [*re.findall(r'^ +"([\w-]+)', needs[1] if needs else "", re.MULTILINE), "pytest"]
    before = list(sys.path)
    sys.path[:0] = [str(packages)] if packages else []
    try:
        lacking = [name for name in names if find_spec(MODULES.get(name, name.replace("-", "_"))) is None]
    finally:
        sys.path[:] = before
    if wants_device and not has_device:
        lacking.append("a CUDA device")
    if wants_device and find_spec("triton") is None:
        lacking.append("triton")
    if not any(shutil.which(name) for name in ("gcc", "cc", "g++", "c++", "clang")):
        lacking.append("a C compiler (torch.compile needs one)")
    return lacking


def _ask(command: Sequence[str], environment: dict[str, str], seconds: float = 20) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def unpack(folder: Path, into: Path) -> Path:
    """Unpack the archive that scripts/gpu_wheels.sh made; return the folder to import from."""
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "packages.tar.xz") as archive:
        archive.extractall(into, filter="data")
    return into


def pack(session: Session) -> None:
    """Put what the stages wrote into an archive in pieces, small files first; what is too large is named."""
    files = [file for file in session.work.rglob("*") if file.is_file() and file.name[0] != "."]
    files.sort(key=lambda file: file.stat().st_size)
    kept, left, total = [], [], 0
    for file in files:
        total += file.stat().st_size
        # Weights hardly shrink, so what goes in is what comes out.
        (kept if total <= MOST_PIECES * PIECE_BYTES * 0.97 else left).append(file)
    session.results["left_out"] = [str(file.relative_to(session.work)) for file in left]
    archive = session.work / ".files.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=5) as tar:
        for file in kept:
            tar.add(file, str(file.relative_to(session.work)))
    for old in session.out.glob("files.tar.gz.*"):
        old.unlink()
    with archive.open("rb") as source:
        for number in range(MOST_PIECES):
            part = source.read(PIECE_BYTES)
            if part:
                (session.out / f"files.tar.gz.{number}").write_bytes(part)
    archive.unlink()
    session.save()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="on_gpu-") as scratch:
        work = Path(scratch) / "work" if arguments.pack else out
        work.mkdir(exist_ok=True)
        packages = unpack(arguments.packages, Path(scratch) / "site") if arguments.packages else None
        device = arguments.device or ("cpu" if arguments.tiny else "cuda")
        session = Session(out, work, device, arguments.tiny, packages, {"stages": {}})
        session.results["machine"] = machine(session)
        session.save()
        print("\n".join(session.summary()), flush=True)
        # Whoever ends this script ends the stage too: an exception on the way out does that.
        signal.signal(signal.SIGTERM, _leave)
        try:
            for name in arguments.stages:
                print(f"\n== {name}, {arguments.limits[name]:.0f} s at most", flush=True)
                run_stage(session, name, arguments.limits[name])
                if arguments.pack:
                    pack(session)
        finally:
            session.save()
            print("\n" + "\n".join(session.summary()), flush=True)
    return 0 if all(stage["state"] == "done" for stage in session.results["stages"].values()) else 6


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default=",".join(LIMITS), help="names, divided by commas")
    parser.add_argument("--limits", default="", help="seconds of stages, as in measure=280,train=170")
    parser.add_argument("--packages", type=Path, help="folder that scripts/gpu_wheels.sh made")
    parser.add_argument("--pack", action="store_true", help="leave few and small files in --out")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at the smallest sizes")
    parser.add_argument("--device", help="cuda, or cpu with --tiny")
    arguments = parser.parse_args(argv)
    arguments.stages = arguments.stages.split(",")
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        parser.error(f"stage {unknown[0]!r} is not known; known: {', '.join(STAGES)}")
    limits = dict(LIMITS)
    for given in filter(None, arguments.limits.split(",")):
        name, _, seconds = given.partition("=")
        if name not in STAGES or not re.fullmatch(r"\d+(\.\d+)?", seconds):
            parser.error(f"--limits {given!r} is no STAGE=SECONDS")
        limits[name] = float(seconds)
    arguments.limits = limits
    if arguments.packages and not (arguments.packages / "packages.tar.xz").is_file():
        parser.error(f"{arguments.packages} holds no packages.tar.xz; make it with scripts/gpu_wheels.sh")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
