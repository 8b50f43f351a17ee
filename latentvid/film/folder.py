"""The run folder: every finished window on disk, whole or absent, and what the next one starts from.

    film.run/
      run.json               settings, plan, hashes of the weights, versions; the film's hash once it is finished
      windows/000007.json    written last: with it, window 7 is complete
      windows/000007.safetensors, .mp4      its latents and its encoded segment
      given.safetensors      latents of the last frames of the clip that is continued, where there is one
      handover.safetensors   what the autoencoder loses of that clip's last frame
      anchors.safetensors    latents of the pictures that it begins or ends with, where there are some
      carry/000008.safetensors              what window 8 starts from; only the newest is kept
      drift.json, drift.png  how the film develops
      preview.m3u8, preview/000007.ts       the windows as a playlist, to be watched while later ones are made

Nothing in memory or in the carry grows with the number of windows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentvid.core.config import validate
from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import LOCK, atomic_path, check_output, read_json, sha256_of, write_json
from latentvid.extension.rules import Tail
from latentvid.film.settings import FilmSettings, RunRecord, WindowRecord

Record = TypeVar("Record", bound=BaseModel)
SEGMENT_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")


NUM_IN_FRONT = 2
"""Frames that are kept: one that lies between two of the model's may need both of them from before."""


@dataclass
class Carry:
    """What a window starts from."""

    tail: Tail | None = None
    decoder: dict[str, Tensor] | None = None
    """The state of the film's decoder, on the CPU; None at its start."""
    last_frames: Tensor | None = None
    """The frames before the window's first new one, as the model made them, no more than `NUM_IN_FRONT`: float
    [n 3 h w] in [-1, 1]."""


class RunFolder:
    """A film being made, or made, at `path`."""

    def __init__(self, path: str | Path, record: RunRecord) -> None:
        self.path, self.record = Path(path), record

    @classmethod
    def create(cls, path: Path, record: RunRecord, *, overwrite: bool) -> RunFolder:
        """Make the folder for a new film.

        Raises:
            UsageError: there is one already (without `overwrite`), or something else lies there.
        """
        clear_run(path, overwrite=overwrite)
        check_output(path / "run.json", overwrite=True)
        for name in ("windows", "carry"):
            (path / name).mkdir(exist_ok=True)
        folder = cls(path, record)
        folder.save()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing folder; a film's own name means the folder beside it.

        Raises:
            InputError: there is none.
            CheckpointError: its record is damaged.
        """
        path = Path(path)
        if not path.is_dir() and path.suffix:
            path = path.with_suffix(".run")
        if not (path / "run.json").is_file():
            raise InputError(f"{path}: no run folder; name one that holds a run.json.")
        record = _read(path / "run.json", RunRecord)
        if Path(record.settings.film).name != record.settings.film:
            raise CheckpointError(f"{path / 'run.json'}: names a film that does not lie beside it.")
        return cls(path, record)

    @property
    def settings(self) -> FilmSettings:
        return self.record.settings

    @property
    def film(self) -> Path:
        return self.path.parent / self.settings.film

    @property
    def segment_suffix(self) -> str:
        """Films that are joined from packets have segments of MP4, whose clock is exact; others keep every bit."""
        return ".mp4" if self.film.suffix.lower() in SEGMENT_SUFFIXES else ".mkv"

    def save(self) -> None:
        write_json(self.path / "run.json", self.record.model_dump(mode="json"))

    def change(self, **settings: Any) -> None:
        """Go on with other settings where a value is given."""
        given = {name: value for name, value in settings.items() if value is not None}
        if given:
            changed = validate({**self.settings.model_dump(), **given}, FilmSettings)
            self.record = self.record.model_copy(update={"settings": changed})
            self.save()

    def latents(self, index: int) -> Path:
        return self.path / "windows" / f"{index:06d}.safetensors"

    @property
    def given(self) -> Path:
        """The latents of the last frames of the clip that the film continues."""
        return self.path / "given.safetensors"

    @property
    def reference(self) -> Path:
        """Latents that the drift guard brings windows back to, where a film of ours began with them."""
        return self.path / "reference.safetensors"

    @property
    def hand_over(self) -> Path:
        """What of the clip's look the model's frames lack."""
        return self.path / "handover.safetensors"

    @property
    def anchors(self) -> Path:
        """The latents of the pictures that the film begins or ends with."""
        return self.path / "anchors.safetensors"

    def segment(self, index: int) -> Path:
        return self.path / "windows" / f"{index:06d}{self.segment_suffix}"

    def carry(self, index: int) -> Path:
        """Return the file that window `index` starts from."""
        return self.path / "carry" / f"{index:06d}.safetensors"

    def window(self, index: int) -> WindowRecord:
        """Read the record of a complete window."""
        return _read(self.path / "windows" / f"{index:06d}.json", WindowRecord)

    def commit(self, record: WindowRecord) -> None:
        """Make a window complete, now that its files are there."""
        self.put(record)
        for old in (self.path / "carry").glob("*.safetensors"):
            if old != self.carry(record.index + 1):
                old.unlink(missing_ok=True)

    def put(self, record: WindowRecord) -> None:
        """Write a window's record."""
        write_json(self.path / "windows" / f"{record.index:06d}.json", record.model_dump(mode="json"))

    @contextmanager
    def staging(self) -> Iterator[RunFolder]:
        """Yield a folder for new versions of windows; once their records are in it, they replace the old ones."""
        staged = RunFolder(self.path / _NEXT, self.record)
        shutil.rmtree(staged.path, ignore_errors=True)
        (staged.path / "windows").mkdir(parents=True)
        yield staged
        self.take_staged()

    def take_staged(self) -> None:
        """Let staged windows replace the old ones; those without a record were not finished and go."""
        staged = self.path / _NEXT
        for record in sorted((staged / "windows").glob("[0-9]*.json")):
            for file in (staged / "windows").glob(f"{record.stem}.*"):
                if file != record:
                    os.replace(file, self.path / "windows" / file.name)
            os.replace(record, self.path / "windows" / record.name)
        shutil.rmtree(staged, ignore_errors=True)

    def hashes(self, *files: Path) -> dict[str, str]:
        return {file.relative_to(self.path).as_posix(): sha256_of(file) for file in files}

    def num_complete(self) -> int:
        """Return how many windows from the first on are complete."""
        count = 0
        while count < self.record.num_windows and (self.path / "windows" / f"{count:06d}.json").is_file():
            count += 1
        return count

    def num_shown(self) -> int:
        """Return how many frames all segments show."""
        return sum(self.window(k).num_shown for k in range(self.record.num_windows))

    def verify(self, count: int) -> None:
        """Check the files of the first `count` windows, and of the next one's carry, against their hashes.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        for index in range(count):
            for name, expected in self.window(index).sha256.items():
                if name.startswith("carry/") and index < count - 1:
                    continue
                file = self.path / name
                if not file.is_file() or sha256_of(file) != expected:
                    raise CheckpointError(
                        f"{file} is missing or was changed; the film cannot go on from here. Make it again."
                    )

    def sweep(self) -> None:
        """Finish, or remove, what a killed process left half-done."""
        self.take_staged()
        for folder in (self.path, *(self.path / name for name in ("windows", "carry", "preview"))):
            for file in folder.glob(".*"):
                if file.is_file() and file.name != LOCK:
                    file.unlink(missing_ok=True)


_LAST, _DECODER = "last_frames", "decoder."
_NEXT = "next"


def run_path(film: Path) -> Path:
    """Return the run folder of a film's file.

    >>> run_path(Path("a/clouds.mp4")).as_posix()
    'a/clouds.run'
    """
    return film.with_suffix(".run")


def clear_run(path: Path, *, overwrite: bool) -> None:
    """Remove an older run folder.

    Raises:
        UsageError: it is there (without `overwrite`), or what is there is no run folder.
    """
    if not path.exists():
        return
    is_empty = path.is_dir() and not any(file.is_file() and file.name[0] != "." for file in path.rglob("*"))
    if not is_empty and not (path / "run.json").is_file():
        raise UsageError(f"{path} is in the way and is no run folder; name another output.")
    if not is_empty and not overwrite:
        raise UsageError(
            f"{path} holds a run already; `latentvid resume {path}` goes on with it, --overwrite starts anew."
        )
    shutil.rmtree(path)


def save_carry(path: Path, carry: Carry) -> None:
    """Write what a window starts from."""
    tensors: dict[str, Tensor] = {}
    if carry.tail is not None:
        for name in ("latents", "noise", "trajectory"):
            value = getattr(carry.tail, name)
            if value is not None:
                tensors[f"tail.{name}"] = value
    tensors |= {f"{_DECODER}{name}": value for name, value in (carry.decoder or {}).items()}
    if carry.last_frames is not None:
        tensors[_LAST] = carry.last_frames
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as beside:
        save_file(stored, beside)


def load_carry(path: Path, device: torch.device) -> Carry:
    """Read it back, bit by bit.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            words = opened.metadata() or {}
            if "num_frames_seen" in words:  # as it was written before decoders had states of their own
                tensors[f"{_DECODER}num_frames_seen"] = torch.tensor(int(words["num_frames_seen"]))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error}); the film cannot go on from here.") from error
    parts = {name: value.to(device) for name, value in tensors.items() if name.startswith("tail.")}
    tail = None
    if "tail.latents" in parts:
        tail = Tail(parts["tail.latents"], parts.get("tail.noise"), parts.get("tail.trajectory"))
    past = {name.removeprefix(_DECODER): value for name, value in tensors.items() if name.startswith(_DECODER)}
    return Carry(tail, past, tensors.get(_LAST))


def settle(carry: Carry) -> Carry:
    """Return the carry laid out in memory as one read from disk is: kernels may round by layout."""
    tail = carry.tail
    if tail is not None:
        tail = Tail(*(None if v is None else v.contiguous() for v in (tail.latents, tail.noise, tail.trajectory)))  # type: ignore[arg-type]
    return Carry(tail, carry.decoder, carry.last_frames)


def _read(path: Path, model: type[Record]) -> Record:
    try:
        data = read_json(path)
        if not isinstance(data, dict):
            raise UsageError(f"{path}: holds no table.")
        return validate(data, model, source=path)
    except (InputError, UsageError) as error:
        raise CheckpointError(f"{error} The run's record is damaged.") from error
