"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
STAND_IN = "LATENTVID_GPU_TESTS_ON"
"""Names another device (cpu) for tests marked `gpu`, to rehearse them where there is no CUDA."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA and nothing stands in for it."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or os.environ.get(STAND_IN):
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA here ({STAND_IN}=cpu rehearses it)"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real clips and weights, which is not part of the project; tests that need it skip without it."""
    folder = Path(os.environ.get("LATENTVID_TEST_ASSETS", ROOT / ".." / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip("no test assets: set LATENTVID_TEST_ASSETS to a folder with data/ and weights/")
    return folder
