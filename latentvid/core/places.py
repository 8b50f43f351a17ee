"""Where the files that come with the package lie: in a clone, beside an installation, or where the user says."""

from __future__ import annotations

import os
from pathlib import Path

from latentvid.core.errors import CheckpointError, did_you_mean

_ROOT = Path(__file__).resolve().parents[2]


def checkpoints_folder() -> Path:
    """Return LATENTVID_CHECKPOINTS, else checkpoints/ of the clone, else checkpoints/ of the current folder."""
    return _folder("checkpoints", "LATENTVID_CHECKPOINTS")


def configs_folder() -> Path:
    """Return LATENTVID_CONFIGS, else configs/ of the clone, else configs/ of the current folder."""
    return _folder("configs", "LATENTVID_CONFIGS")


def checkpoint_names() -> list[str]:
    """Return the names of the checkpoints in `checkpoints_folder()`, sorted."""
    folder = checkpoints_folder()
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if is_checkpoint(p))


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder has the layout of a diffusers pipeline or of one of its components."""
    try:
        return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def find_checkpoint(name: str | Path) -> Path:
    """Return the folder that `name` means: a path as it stands, else a name in `checkpoints_folder()`.

    Raises:
        CheckpointError: neither exists, or it is no checkpoint.
    """
    places = [Path(name), checkpoints_folder() / name] if str(name) else []
    for folder in places:
        if is_checkpoint(folder):
            return folder
    for folder in places:
        if _is_folder(folder):
            raise CheckpointError(f"{folder} holds neither model_index.json nor config.json; it is no checkpoint.")
    raise CheckpointError(
        f"checkpoint {str(name)!r} is neither a folder nor a name in {checkpoints_folder()}"
        f"{did_you_mean(str(name), checkpoint_names())}"
    )


def only_checkpoint(flag: str) -> Path:
    """Return the checkpoint that is meant where none was named: the only one there is.

    Raises:
        CheckpointError: there is none, or several; the sentence asks for `flag`.
    """
    names = checkpoint_names()
    if len(names) == 1:
        return checkpoints_folder() / names[0]
    here = f"{checkpoints_folder()} holds {', '.join(names) or 'none'}"
    raise CheckpointError(f"which checkpoint? Name one with {flag}; {here}.")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _folder(name: str, variable: str) -> Path:
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser()
    for folder in (_ROOT / name, Path.cwd() / name):
        if folder.is_dir():
            return folder
    return _ROOT / name
