"""The device of the tests marked `gpu`, and what keeps them comparable: exact products, one thread on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import STAND_IN
from tests.film.tiny import tiny_pipeline
from tests.gpu.compare import tf32

# Before CUDA starts: without it, cuBLAS may add up in another order when asked to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long ones begin first, one on each worker."""
    own = [item for item in items if HERE in item.path.parents]
    others = [item for item in items if HERE not in item.path.parents]
    items[:] = sorted(own, key=lambda item: item.get_closest_marker("slow") is None) + others


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get(STAND_IN, "cuda"))


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tf32(allowed=False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny pipeline."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder
