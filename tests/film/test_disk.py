"""Films and disks: whose files stay, who may write when, and what a full or read-only disk leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from latentvid.core import files as disk
from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError, UsageError
from latentvid.core.files import LOCK, locked, read_json, sha256_of
from latentvid.film import finish, folder, make
from latentvid.film.extend import extend_clip
from latentvid.film.folder import RunFolder
from latentvid.film.generate import generate_film
from latentvid.film.reroll import reroll_window
from latentvid.film.resume import resume_film
from latentvid.pipeline import LatentVideoPipeline
from tests.film.test_extend import write_clip
from tests.film.test_generate import Stop, stop_in
from tests.film.tiny import STEPS


def begin(pipeline: LatentVideoPipeline, out: Path, **more: Any) -> Path:
    """Make two windows of three."""
    with pytest.raises(Stop):
        generate_film(pipeline, "clouds", out, num_frames=20, on_progress=stop_in(2), **{**STEPS, **more})
    return out.with_suffix(".run")


def tree(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): sha256_of(p) for p in sorted(path.rglob("*")) if p.is_file()}


def test_leave_to_overwrite_is_of_the_call_that_has_it(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    film, sheet, mine = tmp_path / "film.mp4", tmp_path / "s.png", b"of the user's"
    for path in (film, sheet):
        path.write_bytes(mine)
    run = begin(pipeline, film, overwrite=True, contact_sheet=sheet)
    with pytest.raises(UsageError, match=r"move it away.*--overwrite"):
        resume_film(run, pipeline=pipeline)
    assert RunFolder.open(run).num_complete() == 2  # told before anything was computed
    film.unlink()
    report = resume_film(run, pipeline=pipeline)
    assert [note for note in report.notes if "contact sheet was not written" in note and "s.png" in note]
    assert sheet.read_bytes() == mine
    with pytest.raises(UsageError, match="--overwrite"):
        resume_film(run, pipeline=pipeline, contact_sheet=sheet)
    film.write_bytes(mine)
    resume_film(run, pipeline=pipeline, overwrite=True)
    assert film.read_bytes() != mine != sheet.read_bytes()
    # What this run wrote itself follows it.
    made = sha256_of(film), sha256_of(sheet)
    reroll_window(run, 1, prompt="sea at night", pipeline=pipeline)
    assert (sha256_of(film), sha256_of(sheet)) != made
    assert sha256_of(sheet) != made[1]
    film.write_bytes(mine)
    with pytest.raises(UsageError, match="is no film of this run"):
        reroll_window(run, 1, pipeline=pipeline)
    reroll_window(run, 1, pipeline=pipeline, overwrite=True)
    assert film.read_bytes() != mine


def test_a_sheet_that_a_record_names_elsewhere_is_not_written(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    sheet = tmp_path / "elsewhere" / "s.png"
    run = begin(pipeline, tmp_path / "film.mp4", contact_sheet=sheet)
    report = resume_film(run, pipeline=pipeline)
    assert any("--contact-sheet names one" in note for note in report.notes)
    assert not sheet.exists()
    resume_film(run, pipeline=pipeline, contact_sheet=sheet)
    assert sheet.exists()


@pytest.mark.parametrize("what", ["film", "sheet"])
def test_what_appears_while_a_film_is_made_stays(pipeline: LatentVideoPipeline, tmp_path: Path, what: str) -> None:
    film, sheet = tmp_path / "film.mp4", tmp_path / "s.png"
    place = film if what == "film" else sheet

    def appear(at: make.Progress) -> None:
        place.write_bytes(b"theirs")

    def run() -> make.FilmReport:
        return generate_film(pipeline, "clouds", film, num_frames=8, contact_sheet=sheet, on_progress=appear, **STEPS)

    if what == "film":
        with pytest.raises(UsageError, match="move it away"):
            run()
        film.rename(tmp_path / "theirs.mp4")
        resume_film(tmp_path / "film.run", pipeline=pipeline)
    else:
        assert any("contact sheet was not written" in note for note in run().notes)
        assert sheet.read_bytes() == b"theirs"
    assert film.read_bytes() != b"theirs"


def test_only_what_the_run_wrote_is_removed(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    film, run = tmp_path / "film.mp4", tmp_path / "film.run"
    hidden = [run / ".diary", run / "windows" / ".diary", run / "carry" / ".diary"]
    for path in hidden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")

    def are_kept() -> bool:
        return all(path.read_bytes() == b"mine" for path in hidden)

    begin(pipeline, film)
    assert are_kept()
    resume_film(run, pipeline=pipeline)
    assert are_kept()
    (run / "windows" / "diary.txt").write_bytes(b"mine")
    hidden.append(run / "windows" / "diary.txt")
    report = generate_film(pipeline, "sea", film, num_frames=8, overwrite=True, keep_run=False, **STEPS)
    assert are_kept()
    assert any("the folder stays" in note for note in report.notes)
    assert sorted(p.name for p in run.rglob("*")) == [
        ".diary",
        ".diary",
        ".diary",
        LOCK,
        "carry",
        "diary.txt",
        "windows",
    ]


def test_what_was_changed_in_a_run_stays(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    film, run = tmp_path / "film.mp4", begin(pipeline, tmp_path / "film.mp4")
    (run / "drift.json").write_bytes(b"mine")
    (run / "preview.m3u8").write_bytes(b"mine")
    report = resume_film(run, pipeline=pipeline)
    assert any("drift.json was changed" in note for note in report.notes)
    assert (run / "drift.json").read_bytes() == (run / "preview.m3u8").read_bytes() == b"mine"
    before = tree(run)
    with pytest.raises(UsageError, match=r"(drift.json|preview.m3u8) was not written by that run"):
        generate_film(pipeline, "sea", film, num_frames=8, overwrite=True, **STEPS)
    assert tree(run) == before


def test_runs_from_before_there_were_lists_go_on(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    generate_film(pipeline, "clouds", tmp_path / "whole.mp4", num_frames=20, **STEPS)
    run = begin(pipeline, tmp_path / "film.mp4")
    (run / LOCK).write_bytes(b"")
    resume_film(run, pipeline=pipeline)
    (run / LOCK).unlink()
    assert sha256_of(tmp_path / "film.mp4") == sha256_of(tmp_path / "whole.mp4")
    reroll_window(run, 1, pipeline=pipeline)
    generate_film(pipeline, "sea", tmp_path / "film.mp4", num_frames=8, overwrite=True, **STEPS)
    assert read_json(run / "run.json")["num_windows"] == 1
    assert len(list((run / "windows").iterdir())) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_alive_stays(pipeline: LatentVideoPipeline, tmp_path: Path, overwrite: bool) -> None:
    seen: list[type[BaseException]] = []

    def intrude(at: make.Progress) -> None:
        if at.window == 1 and at.call == 1:
            before = tree(tmp_path)
            for intruder in (
                lambda: generate_film(
                    pipeline, "sea", tmp_path / "film.mp4", num_frames=8, overwrite=overwrite, **STEPS
                ),
                lambda: resume_film(tmp_path / "film.run", pipeline=pipeline),
            ):
                try:
                    intruder()
                except LatentVidError as error:
                    seen.append(type(error))
            assert tree(tmp_path) == before

    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=14, on_progress=intrude, **STEPS)
    assert seen == [ResourceError if overwrite else UsageError, ResourceError]


def test_two_films_for_one_place_end_with_one(pipeline: LatentVideoPipeline, tmp_path: Path) -> None:
    """The second begins before the first has written anything but its folder."""
    run = tmp_path / "film.run"
    run.mkdir()
    with locked(run), pytest.raises(ResourceError, match="another process"):
        generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=8, **STEPS)
    generate_film(pipeline, "clouds", tmp_path / "film.mp4", num_frames=8, **STEPS)


@pytest.mark.parametrize("kind", [".mkv", ".gif", ".mov", "inside", "picture", "hard link", "extension"])
def test_a_film_is_not_made_of_what_it_replaces(pipeline: LatentVideoPipeline, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "a.mp4"
    generate_film(pipeline, "clouds", source, num_frames=14, **STEPS)
    if kind == "extension":  # of which another, of the same name but for the suffix, is to be made
        write_clip(tmp_path / "0.mp4")
        source.unlink()
        shutil.rmtree(tmp_path / "a.run")
        extend_clip(pipeline, tmp_path / "0.mp4", source, num_frames=3, **STEPS)
    if kind == "hard link":
        os.link(source, tmp_path / "b.mp4")
    before = tree(tmp_path)
    clip, out, more = source, tmp_path / "a.mkv", {}
    if kind == "inside":
        clip, out = tmp_path / "a.run" / "windows" / "000000.mp4", source
    elif kind == "picture":
        out, more = tmp_path / "b.mp4", {"contact_sheet": source}
    elif kind == "hard link":
        out = tmp_path / "b.mp4"
    elif kind.startswith("."):
        out = tmp_path / f"a{kind}"
    given: dict[str, Any] = {"overwrite": True, **more, **STEPS}
    if kind == ".gif":
        work: Callable[[], object] = lambda: generate_film(pipeline, "sea", out, num_frames=8, **given)  # noqa: E731
    else:
        work = lambda: extend_clip(pipeline, clip, out, num_frames=3, **given)  # noqa: E731
    with pytest.raises(UsageError, match="name another|is the clip itself"):
        work()
    assert tree(tmp_path) == before


SEAMS: dict[str, tuple[object, str]] = {
    "the record": (folder.Folder, "write_json"),
    "the list": (folder.Folder, "_append_to_list"),
    "a carry": (folder, "save_file"),
    "the playlist": (folder.Folder, "append"),
    "a subfolder": (folder.Folder, "make_folder"),
    "every file": (disk, "sync"),
    "the drift": (finish.Drift, "write_png"),
}


def failing(real: Callable[..., Any], at: int, error: OSError) -> Callable[..., Any]:
    calls = iter(range(1, 10_000))

    def call(*given: Any, **more: Any) -> Any:
        if next(calls) == at:
            with disk.resource_errors(Path("disk")):
                raise error
        return real(*given, **more)

    return call


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EROFS, UsageError)])
@pytest.mark.parametrize("seam", SEAMS)
def test_a_disk_that_gives_out_leaves_a_run_that_goes_on(
    pipeline: LatentVideoPipeline,
    whole: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seam: str,
    number: int,
    kind: type[LatentVidError],
) -> None:
    place, name = SEAMS[seam]
    out, run, told = tmp_path / "film.mp4", tmp_path / "film.run", 0
    for at in (1, 2, 7, 12, 20):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), at, OSError(number, "it gave out")))
            try:
                if (run / "run.json").exists():
                    resume_film(run, pipeline=pipeline)
                else:
                    generate_film(pipeline, "clouds", out, num_frames=14, **STEPS)
            except kind:
                told += 1
    assert told
    with suppress(FileExistsError):
        if not (run / "run.json").exists():
            generate_film(pipeline, "clouds", out, num_frames=14, **STEPS)
    resume_film(run, pipeline=pipeline)
    assert sha256_of(out) == whole
    assert not [p for p in tmp_path.rglob(".*") if p.name != LOCK]


@pytest.fixture(scope="module")
def whole(pipeline: LatentVideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "film.mp4"
    generate_film(pipeline, "clouds", out, num_frames=14, **STEPS)
    return sha256_of(out)


@pytest.mark.parametrize("name", ["anchors.safetensors", "given.safetensors", "handover.safetensors"])
def test_a_full_disk_before_the_first_window_is_told_and_resumed(
    pipeline: LatentVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    real = folder.Folder.record

    def record(self: folder.Folder, target: Path, beside: Path) -> None:
        if target.name == name:
            raise OSError(errno.ENOSPC, "full")
        real(self, target, beside)

    if name.startswith("anchors"):
        pytest.importorskip("latentvid.film.anchors")
        monkeypatch.setitem(pipeline.config.overlap_rule, "kind", "context")
        work = lambda: generate_film(  # noqa: E731
            pipeline, "sea", tmp_path / "film.mp4", num_frames=8, start_image=clip, **STEPS
        )
    else:
        work = lambda: extend_clip(pipeline, clip, tmp_path / "film.mp4", num_frames=3, **STEPS)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(folder.Folder, "record", record)
        with pytest.raises(ResourceError, match="latentvid resume"):
            work()
    resume_film(tmp_path / "film.run", pipeline=pipeline)
    assert (tmp_path / "film.mp4").is_file()


@pytest.mark.parametrize("name", ["windows/../../x.mp4", "/etc/hostname", "diary.txt"])
def test_a_window_that_lists_other_files_is_refused(pipeline: LatentVideoPipeline, tmp_path: Path, name: str) -> None:
    run = begin(pipeline, tmp_path / "film.mp4")
    path = run / "windows" / "000000.json"
    record = json.loads(path.read_text())
    record["sha256"][name] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="is no file of such a folder"):
        resume_film(run, pipeline=pipeline)
