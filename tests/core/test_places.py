"""Finding what comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentvid.core.errors import CheckpointError
from latentvid.core.places import checkpoint_names, checkpoints_folder, configs_folder, find_checkpoint, only_checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, file in (("skies", "model_index.json"), ("codec", "config.json"), ("notes", "text")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}", encoding="utf-8")
    monkeypatch.setenv("LATENTVID_CHECKPOINTS", str(tmp_path))
    return tmp_path


def test_the_environment_decides(folder: Path) -> None:
    assert checkpoints_folder() == folder
    assert checkpoint_names() == ["codec", "skies"]


def test_a_clone_finds_its_own_folders_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTVID_CHECKPOINTS", raising=False)
    monkeypatch.delenv("LATENTVID_CONFIGS", raising=False)
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[2]
    assert checkpoints_folder() == root / "checkpoints"
    assert configs_folder() == root / "configs"


def test_a_name_or_a_path(folder: Path) -> None:
    assert find_checkpoint("skies") == folder / "skies"
    assert find_checkpoint(folder / "codec") == folder / "codec"


def test_a_folder_of_footage_does_not_hide_a_checkpoint_of_its_name(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "skies").mkdir()
    monkeypatch.chdir(here)
    assert find_checkpoint("skies") == folder / "skies"


def test_other_names_are_refused_with_a_neighbour(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'skies'"):
        find_checkpoint("skys")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        find_checkpoint("notes")
    with pytest.raises(CheckpointError, match="neither a folder nor a name"):
        find_checkpoint("")


def test_no_folder_means_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTVID_CHECKPOINTS", str(tmp_path / "none"))
    assert checkpoint_names() == []


def test_the_only_one_need_not_be_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="--vae; .* holds codec, skies"):
        only_checkpoint("--vae")
    (folder / "codec" / "config.json").unlink()
    assert only_checkpoint("--vae") == folder / "skies"
