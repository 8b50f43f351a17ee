"""One tiny pipeline for all tests of films, in memory and as a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentvid.pipeline import LatentVideoPipeline
from tests.film.tiny import tiny_pipeline


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pipeline() -> LatentVideoPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def model(pipeline: LatentVideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline.save_pretrained(folder)
    return folder
