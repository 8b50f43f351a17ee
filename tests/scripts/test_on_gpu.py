"""The scripts for a lent GPU, rehearsed on the CPU: what they write, and what does not stop them."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import on_gpu
from scripts.gpu import measure as measuring
from scripts.gpu.measure import Bench, measure


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench_at(folder: Path) -> Bench:
    return Bench(torch.device("cpu"), folder, is_tiny=True)


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers_in(inner)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.slow
def test_every_item_measures_something(tmp_path: Path) -> None:
    # unet_512 is unet_256 with more pixels; tracing the U-Net for the compiler takes longer than all others together.
    left_out = {"unet_512"} | (set() if os.environ.get("LATENTVID_SLOW") else {"unet_compiled"})
    names = [name for name in measuring.ITEMS if name not in left_out]
    measure(bench_at(tmp_path), names)
    items = json.loads((tmp_path / "measure.json").read_text())["items"]
    assert list(items) == names
    for name, item in items.items():
        assert item["ok"], (name, item)
        assert item["lines"]
        assert any(number > 0 for number in numbers_in({k: v for k, v in item.items() if k != "seconds"})), name
    assert {"eager", "guidance apart", "channels last"} <= items["unet_256"]["ways"].keys()
    sky = items["film_sky"]
    assert (sky["num_windows"], len(sky["memory_bytes"]), sky["is_memory_flat"]) == (3, 3, True)
    assert 0 < sky["inside_networks_s"] < sky["loop_s"] < sky["wall_s"]
    assert 0 < sky["first_window_s"] < sky["wall_s"]
    # Every kind of work is found where it is looked for, and none is counted twice.
    assert sky["phases"]["not_found"] == []
    assert {"U-Net", "decoder", "text", "hashing", "file sync", "video encoding"} <= sky["phases"]["seconds"].keys()
    assert 0 <= sky["phases"]["seconds"]["other"] < 0.5 * sky["phases"]["wall_s"]
    if "unet_compiled" in names:
        assert items["unet_compiled"]["ways"]["512, contiguous"]["relative_error"] < 1e-5
    assert (tmp_path / "unet_profile.txt").is_file()
    assert "function calls" in (tmp_path / "film_sky_profile.txt").read_text()
    assert (tmp_path / "film_sky" / "film.png").is_file()


def test_what_fails_or_takes_too_long_does_not_stop_the_next(tmp_path: Path) -> None:
    def slow(bench: Bench) -> dict[str, Any]:
        bench.kept["slow.partial"] = {"lines": ["so far"]}
        while True:
            torch.zeros(1).add_(1)

    def broken(_: Bench) -> dict[str, Any]:
        raise RuntimeError("of no use\nat all")

    def lost(_: Bench) -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    items = {
        "slow": (0.2, slow),
        "broken": (9.0, broken),
        "fine": (9.0, lambda _: {"value": 1}),
        "lost": (9.0, lost),
        "after": (9.0, lambda _: {"value": 2}),
    }
    found = measure(bench_at(tmp_path), list(items), items=items)["items"]
    assert (found["slow"]["error"], found["slow"]["lines"]) == ("not done after 0 s", ["so far"])
    assert found["broken"]["error"] == "RuntimeError: of no use"
    assert found["fine"]["value"] == 1
    assert list(found) == ["slow", "broken", "fine", "lost"]  # no later item can use the device in this process
    found = measure(bench_at(tmp_path), list(items), items=items, appends=True)["items"]
    assert found["after"]["value"] == 2
    assert list(found) == list(items)
    late = measure(bench_at(tmp_path / "late"), ["fine"], items=items, seconds=0.1)["items"]
    assert late["fine"] == {"ok": False, "error": "no time was left"}


def test_stages_are_kept_within_limits_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*words: str) -> Any:
        def command(session: on_gpu.Session, seconds: float) -> list[str]:
            return [
                "-c",
                f"import time; from pathlib import Path; out = Path({str(session.work)!r}); {'; '.join(words)}",
            ]

        return command, lambda session, log: {"lines": log.read_text().splitlines()[-1:]}

    big = "(out / 'weights').write_bytes(bytes(3000))"
    stages = {
        "prove": said("print('begun', flush=True)", "time.sleep(60)"),
        "measure": said("print('no good')", "raise SystemExit(3)"),
        "train": said("print('fine')", big, "(out / 'note.txt').write_text('kept')"),
    }
    monkeypatch.setattr(on_gpu, "STAGES", stages)
    monkeypatch.setattr(on_gpu, "PIECE_BYTES", 300)
    monkeypatch.setattr(on_gpu, "machine", lambda session: {"card": "a card", "missing": ["decord"]})
    out = tmp_path / "out"
    assert on_gpu.main(["--out", str(out), "--pack", "--tiny", "--limits", "prove=1.5"]) == 6
    found = json.loads((out / "results.json").read_text())
    states = {name: (stage["state"], stage["lines"]) for name, stage in found["stages"].items()}
    assert states == {
        "prove": ("killed at its limit", ["begun"]),
        "measure": ("failed with exit code 3", ["no good"]),
        "train": ("done", ["fine"]),
    }
    assert found["stages"]["prove"]["seconds"] < 10
    assert "missing on this machine: decord" in (out / "summary.txt").read_text()
    assert found["left_out"] == ["weights"]
    pieces = sorted(out.glob("files.tar.gz.*"))
    assert len(list(out.iterdir())) == 2 + len(pieces) <= 8
    (tmp_path / "whole.tar.gz").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "whole.tar.gz") as archive:
        assert {"note.txt", "prove.log", "measure.log", "train.log"} == set(archive.getnames())


def test_pytest_is_read_while_it_runs(tmp_path: Path) -> None:
    log = tmp_path / "prove.log"
    head = "tests/gpu/test_a.py::test_one[a b] PASSED  [ 33%]\ntests/gpu/test_a.py::test_two FAILED  [ 66%]\n"
    session = on_gpu.Session(tmp_path, tmp_path, "cpu", True)
    log.write_text(head)
    assert on_gpu.read_tests(session, log)["counts"] == {"passed": 1, "failed": 1}
    log.write_text(
        "[gw0] [ 33%] PASSED tests/gpu/test_a.py::test_one[a b] \n[gw11] [100%] SKIPPED tests/a.py::test_two \n"
    )
    assert on_gpu.read_tests(session, log)["tests"] == {
        "tests/gpu/test_a.py::test_one[a b]": "passed",
        "tests/a.py::test_two": "skipped",
    }
    log.write_text(
        head + "FAILED tests/gpu/test_a.py::test_two - assert 1 == 2\nERROR tests/gpu/test_b.py - no module\n"
    )
    found = on_gpu.read_tests(session, log)
    assert found["counts"] == {"passed": 1, "failed": 1, "error": 1}
    assert found["failures"] == {"tests/gpu/test_a.py::test_two": "assert 1 == 2", "tests/gpu/test_b.py": "no module"}


def test_what_a_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = on_gpu.find_spec
    monkeypatch.setattr(on_gpu, "find_spec", lambda name: None if name in ("av", "kornia") else real(name))
    lacking = on_gpu.missing(None, has_device=False)
    assert {"av", "kornia", "a CUDA device"} <= set(lacking)
    assert {"torch", "pyyaml", "pillow"}.isdisjoint(lacking)
    (tmp_path / "kornia").mkdir()
    (tmp_path / "kornia" / "__init__.py").touch()
    monkeypatch.setattr(on_gpu, "find_spec", lambda name: real(name) if name in sys.modules else None)
    monkeypatch.setattr(on_gpu, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = [\n    "torch>=2",\n    "nowhere-x[a]>=1",\n]\n'
    )
    assert "nowhere-x" in on_gpu.missing(tmp_path, has_device=True, wants_device=False)
