"""The contact sheet that shows what each augmentation does."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from example_runs import start

from iivcl.data import DecodeError, make_synthetic_videos


def test_it_draws_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (video,) = make_synthetic_videos(tmp_path / "videos", 1, num_classes=2)
    sheet = tmp_path / "sheet.png"
    done = start("show_augmentations", video, "--frames", 3, "--out", sheet, capsys=capsys)
    assert done == (0, f"wrote {sheet}\n", "")
    picture = matplotlib.image.imread(sheet)[..., :3]  # (height, width, 3) within [0, 1]
    filled = (picture < 0.98).any(axis=2)
    # Twelve rows of three frames, with white gaps between them.
    frames = filled[:, filled.mean(axis=0) > 0.8]
    assert 3 * 80 < frames.shape[1] < 3 * 112
    edges = np.diff((frames.mean(axis=1) > 0.5).astype(int), prepend=0)
    assert (edges == 1).sum() == 12


def test_a_missing_file_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DecodeError, match=r"gone\.mp4: No such file"):
        start("show_augmentations", tmp_path / "gone.mp4", capsys=capsys)
