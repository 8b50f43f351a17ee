"""Damaged files give frames or one sentence: no other exception, no crash, no hang, nothing half written.

LATENTVID_FUZZ=400 runs so many cases instead of the usual few, on the small files of the test assets too, and encodes
each besides reading it.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latentvid.core.errors import InputError
from latentvid.video.reader import open_video
from tests.video.fuzzing import Reader, make_seeds, mutate

NUM_CASES = int(os.environ.get("LATENTVID_FUZZ", "0"))
USUAL = 40
MOST_BYTES, MOST_PIXELS = 20_000, 1_000_000


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_seeds_are_whole(seeds: list[Path]) -> None:
    for seed in seeds:
        assert sum(1 for _ in open_video(seed).frames()) in (1, 6), seed.name


def small_files(request: pytest.FixtureRequest) -> list[Path]:
    folder = request.getfixturevalue("assets") / "data" / "awkward"
    return sorted(file for file in folder.iterdir() if 0 < file.stat().st_size < MOST_BYTES and is_quick(file))


def is_quick(file: Path) -> bool:
    """Whether reading and encoding it takes a small part of the time limit."""
    try:
        meta = open_video(file).meta
    except InputError:
        return True
    return meta.width * meta.height * meta.num_frames < MOST_PIXELS


def test_damaged_files_give_frames_or_one_sentence(
    seeds: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if NUM_CASES:
        seeds = seeds + small_files(request)
    read = Reader(encodes=NUM_CASES > 0)
    verdicts: Counter[str] = Counter()
    wrong = []
    for case in range(NUM_CASES or USUAL):
        seed = seeds[case % len(seeds)]
        path = tmp_path / str(case) / seed.name
        path.parent.mkdir()
        path.write_bytes(mutate(seed.read_bytes(), np.random.default_rng(case)))
        verdict = read(path)
        verdicts[verdict if verdict in ("frames", "refused") else "wrong"] += 1
        if verdict not in ("frames", "refused"):
            wrong.append(f"case {case}, {seed.name}: {verdict}")
        path.unlink()
    read.close()
    assert not wrong, "\n".join(wrong)
    # Mutations that all files survive, or none, would test nothing.
    assert min(verdicts["frames"], verdicts["refused"]) > 0.1 * verdicts.total()
