"""The step that is recorded as a CUDA graph also runs where there is no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "cuda_graph.py"


@pytest.mark.slow
def test_the_step_trains_and_fills_the_queue(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "3", "--videos", "2"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, last = re.findall(r"step (\d+): loss (\S+), rows (\d+)", run.stdout)
    assert first == ("0", "0.000", "2")  # an empty queue has no negatives
    assert last[0] == "2"
    assert float(last[1]) > 0
    assert last[2] == "6"
