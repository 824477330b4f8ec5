"""The contact sheet that shows what each augmentation does."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from example_runs import start

from iivcl.data import make_synthetic_videos


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


@pytest.mark.parametrize(
    ("file", "out", "message"),
    [
        ("gone.mp4", "a.png", "{file}: No such file"),
        ("broken.mp4", "a.png", "{file}: Invalid data found"),
        ("empty", "a.png", "{file}: the folder holds no images"),
        (None, "a.foo", "--out must be a file such as .png or .svg; got {out}"),
        (None, "empty", "--out must be a file such as .png or .svg; got {out}"),
        (None, "gone/a.png", "--out: no such folder: {out.parent}"),
        (None, "folder.png", "--out: [Errno 21] Is a directory: '{out}'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    file: str | None, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name in ("empty", "folder.png"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = [] if file is None else [tmp_path / file]
    options = ("--frames", 1, "--out", tmp_path / out)
    done = start("show_augmentations", *given, *options, capsys=capsys)
    assert (done.status, done.out) == (2, "")
    expected = message.format(file=tmp_path / (file or ""), out=tmp_path / out)
    assert done.err.splitlines()[-1].startswith(f"show_augmentations: error: {expected}")
    assert sorted(tmp_path.rglob("*")) == before
