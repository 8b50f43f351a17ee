"""The folder of a finetuning: what lies in it, whether a run may go on there, and how far its stages have come.

The folder holds the finished autoencoder; `run/` in it is the training, which can be resumed: a run for each stage.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import read_json
from latentvid.core.folder import Folder, Layout
from latentvid.finetuning.config import STAGES, FinetuneConfig, Stage
from latentvid.finetuning.footage import Footage
from latentvid.training.loop import RESULT, saved_states
from latentvid.training.resuming import OnNote, check_settings, compare_files

RUN, SETTINGS = "run", "settings.json"
STAGED = f"{RUN}/.export"
LAYOUT = Layout(
    files=re.compile(
        r"README\.md|metrics\.json|table\.md|curves\.png|side_by_side\.(png|mp4)|report/[^/]+|(delta/)?config\.json"
        r"|(delta/)?[\w.-]+\.safetensors(\.index\.json)?|run/settings\.json|run/cache/[\w.-]+/shard-\d+\.safetensors"
        r"|run/\.export/.+"
    ),
    folders=re.compile(r"report|delta|run|run/cache|run/cache/[\w.-]+|run/\.export(/.+)?"),
    documents=re.compile(r"README\.md|metrics\.json|table\.md|curves\.png|side_by_side\.(png|mp4)|report/.+"),
)
"""What lies in the folder of a finetuning, but for the runs of its stages, which have their own."""


@dataclass(frozen=True, slots=True)
class StageDone:
    """What came of a stage."""

    name: str
    steps: int
    """Taken."""
    kept: int
    """The step whose weights were kept."""
    stopped: bool
    """Whether it stopped early."""
    validation: dict[str, float]
    """Figures of the kept weights on held-out crops."""

    def sentence(self) -> str:
        """Say how it went."""
        early = ", having stopped early" if self.stopped else ""
        return f"stage {self.name}: {self.steps} steps{early}; the weights of step {self.kept} are kept."


def folder_of(path: str | Path) -> Folder:
    """Return what the folder of a finetuning is read and written through."""
    return Folder(Path(path), LAYOUT, home=RUN)


@contextmanager
def results(path: str | Path) -> Iterator[Path]:
    """Yield a folder for the files of a finetuning; they go to their places when the block succeeds.

    What somebody changed since it was written stays as it is, with a warning; the folder must not be held already.

    Raises:
        UsageError: another file than a document is in the way.
        ResourceError: another process is working in the folder, or the disk is full.
    """
    files = folder_of(path)
    with files.held(), staged_in(files) as staged:
        yield staged


@contextmanager
def staged_in(files: Folder) -> Iterator[Path]:
    """Do the same in a folder that this process holds."""
    files.drop(STAGED)
    try:
        yield files.make_folder(STAGED)
        kept = files.install(STAGED, "")
    finally:
        files.drop(STAGED)
    for name in kept:
        warnings.warn(f"{files.path / name} was changed since it was written; it is left as it is.", stacklevel=1)


def check_folder(
    folder: Path,
    config: FinetuneConfig,
    vae: str,
    footage: Footage,
    *,
    resume: bool,
    on_note: OnNote = warnings.warn,
) -> None:
    """Make sure that `folder` is new, or holds this very run where it is to be resumed; write down its settings.

    Raises:
        UsageError: as above.
    """
    files, path = folder_of(folder), folder / RUN / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder.")
    files.check()
    settings = {
        "vae": vae,
        "config": config.model_dump(mode="json"),
        "train": [str(clip.path.resolve()) for clip in footage.train],
        "held_out": [str(clip.path.resolve()) for clip in footage.held_out],
        "deinterlace": any(clip.reading.deinterlace for clip in footage.train),
    }
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} exists and holds something else than a run; name another folder.")
        files.make_folder(RUN)
        with files.held():
            files.begin()
            files.write_json(f"{RUN}/{SETTINGS}", settings)
        return
    if not resume:
        raise UsageError(f"{folder} exists and holds a run; pass --resume to go on with it, or name another folder.")
    before = read_json(path)
    if isinstance(before, dict):
        before.setdefault("deinterlace", False)
    if not isinstance(before, dict) or before.keys() != settings.keys():
        raise CheckpointError(f"{path} is damaged; start in another folder.")
    # Settings that a run does not know came after it, and their defaults are what it did.
    with suppress(ValidationError):
        before["config"] = FinetuneConfig.model_validate(before["config"]).model_dump(mode="json")
    _check_same(folder, before, settings, config, on_note)
    if before != settings:
        with files.held():
            files.write_json(f"{RUN}/{SETTINGS}", settings)


def _check_same(
    folder: Path, before: dict[str, Any], now: dict[str, Any], config: FinetuneConfig, on_note: OnNote
) -> None:
    """Refuse to go on with other settings or files, and tell of those that changed and may.

    Stages can be added at the end, and what concerns a stage that was not begun can be changed.

    Raises:
        UsageError: as above.
    """
    begun = {name for name in STAGES if saved_states(folder / RUN / name)}
    taken = {
        f"{'' if name == 'temporal' else f'{name}.'}loop.steps": int(saved_states(folder / RUN / name)[-1].name[5:])
        for name in begun
    }
    free = [name for name in STAGES[1:] if name not in begun]
    stages = before["config"].get("stages") if isinstance(before["config"], dict) else None
    if isinstance(stages, list) and now["config"]["stages"][: len(stages)] == stages:
        free.append("stages")
    old, new = ({key: each[key] for key in ("vae", "deinterlace")} | each["config"] for each in (before, now))
    for note in check_settings(folder, old, new, taken, free=tuple(free)):
        on_note(f"{folder}: {note}")
    compare_files(folder, "to train on", before["train"], now["train"])
    compare_files(folder, "held out", before["held_out"], now["held_out"])
    for stage in config.plan():
        result = folder / RUN / stage.name / RESULT
        if result.is_file() and is_done(config, stage, folder / RUN) and read_json(result)["steps"] < stage.loop.steps:
            why = "it stopped early" if read_json(result)["stopped"] else "the next stage was grown from it"
            on_note(f"{folder}: stage {stage.name} stays as it is, since {why}")


def is_done(config: FinetuneConfig, stage: Stage, run: Path) -> bool:
    """Tell whether a stage needs no more steps: it took as many, stopped early, or a later one was grown from it."""
    if not (run / stage.name / RESULT).is_file():
        return False
    later = config.stages[config.stages.index(stage.name) + 1 :]  # type: ignore[arg-type]
    if any(saved_states(run / name) for name in later):
        return True
    done = stage_done(stage, run / stage.name)
    return done.stopped or done.steps >= stage.loop.steps


def stage_done(stage: Stage, folder: Path) -> StageDone:
    """Return what a finished run's folder says.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        result, figures = read_json(folder / RESULT), read_json(folder / "export" / "metrics.json")["held_out"]
        return StageDone(stage.name, **result, validation=figures)
    except (InputError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged; delete its {RESULT} to export it again.") from error
