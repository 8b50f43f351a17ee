"""The script that kills films at random moments, at its smallest size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_random_kills(model: Path, tmp_path: Path) -> None:
    words = ["--model", str(model), "--kills", "6", "--frames", "14", "--steps", "2"]
    words += ["--json", str(tmp_path / "k.json")]
    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "kill_test.py"), *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "k.json").read_text())
    assert [kill["verb"] for kill in found["kills"]] == ["generate", "extend", "reroll", "train", "encode", "finetune"]
    assert found["num_identical"] == 6
