"""Fixtures of the video tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from tests.video.clips import numbered, write


@pytest.fixture(scope="session")
def numbered_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 numbered frames in H.264 with B-frames and several key frames."""
    return write(tmp_path_factory.mktemp("clips") / "numbered.mp4", numbered(150), Fraction(30000, 1001))
