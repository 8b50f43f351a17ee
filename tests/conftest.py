"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real clips and weights, which is not part of the project; tests that need it skip without it."""
    folder = Path(os.environ.get("LATENTVID_TEST_ASSETS", ROOT / ".." / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip("no test assets: set LATENTVID_TEST_ASSETS to a folder with data/ and weights/")
    return folder
