"""The contact sheet from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np

from iivcl.data import make_synthetic_videos

EXAMPLE = Path(__file__).parent.parent / "examples" / "show_augmentations.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_draws_a_file(tmp_path: Path) -> None:
    (video,) = make_synthetic_videos(tmp_path / "videos", 1, num_classes=2)
    sheet = tmp_path / "sheet.png"
    done = run(video, "--frames", 3, "--out", sheet)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {sheet}\n"
    picture = matplotlib.image.imread(sheet)[..., :3]  # (height, width, 3) within [0, 1]
    filled = (picture < 0.98).any(axis=2)
    # Twelve rows of three frames, with white gaps between them.
    frames = filled[:, filled.mean(axis=0) > 0.8]
    assert 3 * 80 < frames.shape[1] < 3 * 112
    edges = np.diff((frames.mean(axis=1) > 0.5).astype(int), prepend=0)
    assert (edges == 1).sum() == 12


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    done = run(tmp_path / "gone.mp4")
    assert done.returncode == 1
    assert "gone.mp4" in done.stderr.splitlines()[-1]
