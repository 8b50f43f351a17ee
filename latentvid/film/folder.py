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

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentvid.core.config import validate
from latentvid.core.errors import CheckpointError, InputError, LatentVidError, UsageError
from latentvid.core.files import atomic_path, check_output, put_in_place, sha256_of
from latentvid.core.folder import Folder, Layout
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rules import Tail
from latentvid.film.settings import FilmSettings, Reroll, RunRecord, WindowRecord
from latentvid.video.encoders import choose_codec

Record = TypeVar("Record", bound=BaseModel)
SEGMENT_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
RECORD, SHEET = "run.json", "sheet.png"
LAYOUT = Layout(
    files=re.compile(
        r"run\.json|(given|handover|anchors|reference)\.safetensors|drift\.(json|png)|sheet\.png|preview\.m3u8"
        r"|(film|trial-film)\.\w{1,8}|(source|trial)\.(mp4|mkv)"
        r"|(next/)?windows/\d{6,9}\.(json|safetensors|mp4|mkv)|carry/\d{6,9}\.safetensors|preview/\d{6,9}\.ts"
        r"|next/run\.json"
    ),
    folders=re.compile(r"windows|carry|preview|next|next/windows"),
    always=frozenset([RECORD]),
    grows=frozenset(["preview.m3u8"]),
)
"""What lies in a run folder."""


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
    """A film being made, or made, at `path`.

    Attributes:
        files: through which all that is in the folder is written and removed.
        overwrite: whether this call may replace a film and a contact sheet that are not the run's own.
        sheet: the contact sheet that this call was told to write.
    """

    def __init__(self, path: str | Path, record: RunRecord, files: Folder | None = None) -> None:
        self.path, self.record = Path(path), record
        self.files = files or Folder(self.path, LAYOUT)
        self.overwrite = False
        self.sheet: Path | None = None

    @classmethod
    @contextmanager
    def create(cls, path: Path, record: RunRecord, *, overwrite: bool) -> Iterator[RunFolder]:
        """Make the folder for a new film, and hold it while the block runs.

        Raises:
            UsageError: there is one already (without `overwrite`), or something else lies there.
            ResourceError: another process is working in it.
        """
        check_place(path, record.settings.film, overwrite=overwrite)
        check_output(path / RECORD, overwrite=True)
        files = Folder(path, LAYOUT)
        with files.held():
            check_place(path, record.settings.film, overwrite=overwrite)  # now that nobody else is in it
            try:
                files.clear()
                files.begin()
                for name in ("windows", "carry"):
                    files.make_folder(name)
                folder = cls(path, record, files)
                folder.overwrite = overwrite
                folder.save()
            except BaseException:
                with suppress(LatentVidError, OSError):  # there is nothing to go on with
                    files.remove_all()
                raise
            yield folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing folder; a film's own name means the folder beside it.

        Raises:
            InputError: there is none.
            CheckpointError: its record is damaged, or links are in it.
        """
        path = Path(path)
        if not path.is_dir() and path.suffix:
            path = path.with_suffix(".run")
        files = Folder(path, LAYOUT)
        if not os.path.lexists(path / RECORD):
            raise InputError(f"{path}: no run folder; name one that holds a run.json.")
        files.check()
        return cls(path, _read_run(files), files)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out while the block runs, and finish what a killed one left half-done.

        Raises:
            ResourceError: another process is working in it.
        """
        with self.files.held():
            self.record = _read_run(self.files)  # another process may have gone on with it
            self.sweep()
            yield

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

    @property
    def is_beside_its_film(self) -> bool:
        """Whether the folder bears the name of its film, as all are begun."""
        return run_path(self.film).name == Path(os.path.abspath(self.path)).name

    def save(self) -> None:
        self.files.write_json(RECORD, self.record.model_dump(mode="json"))

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
        """Read the record of a complete window.

        Raises:
            CheckpointError: it is damaged, or of another window.
        """
        name = f"windows/{index:06d}.json"
        found = _read(self.files, name, WindowRecord)
        window = FilmPlan(**self.record.plan)[index]  # type: ignore[arg-type]
        if (found.index, found.first_frame, found.num_new) != (index, window.new_from, window.num_new):
            raise CheckpointError(f"{self.path / name}: tells of another window. The run's record is damaged.")
        return found

    def commit(self, record: WindowRecord) -> None:
        """Make a window complete, now that its files are there."""
        self.put(record)
        for name in self.files.files_in("carry"):
            if name != f"carry/{record.index + 1:06d}.safetensors":
                self.files.remove(name)

    def put(self, record: WindowRecord) -> None:
        """Write a window's record."""
        self._put(f"windows/{record.index:06d}.json", record)

    def _put(self, name: str, record: BaseModel) -> None:
        below = self.path.relative_to(self.files.path).as_posix()  # "next" of a staged folder
        self.files.write_json(name if below == "." else f"{below}/{name}", record.model_dump(mode="json"))

    @contextmanager
    def staging(self, rerolls: list[Reroll]) -> Iterator[RunFolder]:
        """Yield a folder for new versions of windows; once their records are in it, they replace the old ones.

        Args:
            rerolls: what the run's record says of windows made again from then on.
        """
        self._drop_staged()
        self.files.make_folder(f"{_NEXT}/windows")
        staged = RunFolder(self.path / _NEXT, self.record.model_copy(update={"rerolls": rerolls}), self.files)
        staged._put(RECORD, staged.record)
        yield staged
        self.take_staged()

    def take_staged(self) -> None:
        """Let staged windows replace the old ones; those without a record were not finished and go.

        A window's record is moved last, so that whoever was killed in between goes on.
        """
        staged = self.files.files_in(f"{_NEXT}/windows")
        records = [name for name in staged if name.endswith(".json")]
        for record in records:
            stem = Path(record).stem
            self.files.remove(f"preview/{stem}.ts")
            for name in staged:
                if Path(name).stem == stem and name != record:
                    self.files.move(name, name.removeprefix(f"{_NEXT}/"))
        if records and self.files.has(f"{_NEXT}/{RECORD}"):
            self.files.move(f"{_NEXT}/{RECORD}", RECORD)
            self.record = _read_run(self.files)
        for record in records:
            self.files.move(record, record.removeprefix(f"{_NEXT}/"))
        self._drop_staged()

    def _drop_staged(self) -> None:
        for name in (*self.files.files_in(f"{_NEXT}/windows"), *self.files.files_in(_NEXT)):
            self.files.remove(name)
        for name in (f"{_NEXT}/windows", _NEXT):
            self.files.remove_folder(name)

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
                file = self.files.file(name)
                if not file.is_file() or sha256_of(file, follow_links=False) != expected:
                    raise CheckpointError(
                        f"{file} is missing or was changed; the film cannot go on from here. Make it again."
                    )

    def sweep(self) -> None:
        """Finish, or remove, what a killed process left half-done."""
        self.take_staged()
        self.files.sweep()


_LAST, _DECODER = "last_frames", "decoder."
_NEXT = "next"


def run_path(film: Path) -> Path:
    """Return the run folder of a film's file.

    >>> run_path(Path("a/clouds.mp4")).as_posix()
    'a/clouds.run'
    """
    return film.with_suffix(".run")


def check_place(path: Path, film: str, *, overwrite: bool) -> None:
    """Refuse a folder that a new run must not begin in.

    Args:
        film: file name of the film that is to be made; leave to overwrite it is none for the run of another.

    Raises:
        UsageError: a run is there (without `overwrite`) or that of another film, or what is there is no run folder.
        CheckpointError: links are in it.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise UsageError(f"{path} is in the way and is no run folder; name another output.")
    if not os.path.lexists(path / RECORD):
        if any(not name.startswith(".") for _, _, names in os.walk(path) for name in names):
            raise UsageError(f"{path} is in the way and is no run folder; name another output.")
        Folder(path, LAYOUT).check()
        return
    try:
        run = RunFolder.open(path)
    except LatentVidError as error:
        raise type(error)(f"{error} Remove {path} yourself, or name another output.") from error
    if run.settings.film != film:
        raise UsageError(
            f"{path} holds the run of {run.settings.film}, which {film} would replace; name another output."
        )
    if not overwrite:
        raise UsageError(
            f"{path} holds a run already; `latentvid resume {path}` goes on with it, --overwrite starts anew."
        )
    changed = run.files.changed()
    if changed:
        raise UsageError(
            f"{path / changed[0]} was not written by that run, or was changed since, and is left as it is; "
            "move it away."
        )


def check_inputs(out: Path, sheet: str | Path | None, *inputs: str | Path | None) -> None:
    """Refuse to make a film of what it would replace: its inputs lie where it, its run or its sheet is to go.

    Raises:
        UsageError: as above.
    """
    run = run_path(out).resolve()
    for given in inputs:
        if given is None:
            continue
        refuse_same(Path(given), out, sheet)
        if run in (Path(given).resolve(), *Path(given).resolve().parents):
            raise UsageError(f"{given} lies in {run}, the run folder of the film to be made; name another output.")


def refuse_same(given: Path, *outputs: str | Path | None) -> None:
    """Refuse outputs that are an input itself, under whatever name.

    Raises:
        UsageError: as above.
    """
    for out in outputs:
        if out is None:
            continue
        if Path(out).resolve() == given.resolve() or (
            Path(out).exists() and given.exists() and os.path.samefile(out, given)
        ):
            raise UsageError(f"{out} is the clip itself, or a picture that goes into it; name another file.")


def deliver(source: Path, target: Path, *, known: str | None, overwrite: bool) -> str:
    """Move a finished file to where the user wants it; return its hash.

    Args:
        known: hash of a file of the run's own that may be replaced.
        overwrite: whether this call may replace any.

    Raises:
        UsageError: something else lies there.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder; move it away.")
    digest, there = sha256_of(source, follow_links=False), None
    if os.path.lexists(target) and not overwrite:
        there = sha256_of(target, follow_links=False) if target.is_file() and not target.is_symlink() else ""
        if there == digest:
            source.unlink()
            return digest
        if known is None or there != known:
            raise UsageError(f"{target} exists and is not of this run; move it away, or pass --overwrite.")
    may_replace = overwrite or there is not None
    try:
        put_in_place(source, target, overwrite=may_replace)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the run folder lies on another disk than what is beside it
            raise
        with atomic_path(target, overwrite=may_replace) as beside:
            shutil.copyfile(source, beside)
        source.unlink()
    return digest


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


def _read_run(files: Folder) -> RunRecord:
    record = _read(files, RECORD, RunRecord)
    name = record.settings.film
    if not name or Path(name).name != name or name.startswith(".") or set(name) & set("\\/:\0"):
        raise CheckpointError(f"{files.path / RECORD}: names a film that does not lie beside it.")
    try:
        choose_codec(Path(name), None)
    except UsageError as error:
        raise CheckpointError(f"{files.path / RECORD}: names a film that is none ({error})") from error
    return record


def _read(files: Folder, name: str, model: type[Record]) -> Record:
    path = files.path / name
    try:
        data = files.read_json(name)
        if not isinstance(data, dict):
            raise UsageError(f"{path}: holds no table.")
        return validate(data, model, source=path)
    except (InputError, UsageError) as error:
        raise CheckpointError(f"{error} The run's record is damaged.") from error
