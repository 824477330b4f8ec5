"""The benchmark for a GPU runs where there is none, and writes what it has after every row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_quick_run_on_a_cpu_writes_its_rows_and_both_files(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    options = ["--device", "cpu", "--quick", "--only", "lookup", "--out", str(tmp_path / "gpu")]
    subprocess.run([sys.executable, str(script), *options], check=True, capture_output=True)
    report = json.loads((tmp_path / "gpu.json").read_text())
    (row,) = report["results"]
    assert set(row["milliseconds"]) == {
        "bare product", "product + topk", "exact_topk", "nearest, ids"
    }  # fmt: skip
    assert all(times["rounds"] >= 4 for times in row["milliseconds"].values())
    assert row["ratios"]["exact_topk"]["product + topk"]["median"] > 0
    assert row["skipped"] == {}
    text = (tmp_path / "gpu.md").read_text()
    assert f"`{report['command']}`" in text
    assert row["title"] in text
