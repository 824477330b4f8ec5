"""The generated set: repeatable, complete or absent, and balanced over its classes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import iivcl.data._synthetic
from iivcl.data import make_synthetic_videos, probe, read_clips


def frames(path: Path) -> torch.Tensor:
    return read_clips(path, torch.arange(24)[None])[0]


def test_files_are_real_videos_of_balanced_classes(tmp_path: Path) -> None:
    paths = make_synthetic_videos(tmp_path / "set", 32, num_classes=16)
    assert Counter(path.parent.name for path in paths).most_common()[0][1] == 2
    assert len({path.parent.name for path in paths}) == 16
    info = probe(paths[0])
    assert (info.num_frames, info.height, info.width, round(info.fps)) == (24, 48, 48, 12)
    video = frames(paths[0]).float()
    assert (video[:, 1:] - video[:, :-1]).abs().mean() > 0.5  # something moves


def test_a_video_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    small = make_synthetic_videos(tmp_path / "small", 2, num_classes=2)
    large = make_synthetic_videos(tmp_path / "large", 6, num_classes=2)
    other = make_synthetic_videos(tmp_path / "other", 2, num_classes=2, seed=1)
    by_name = {path.name: path for path in large}
    for path, different in zip(small, other, strict=True):
        video = frames(path).float()
        # Not bytes: encoders that run side by side may settle on slightly different ones.
        assert (video - frames(by_name[path.name])).abs().mean() < 1
        assert (video - frames(different)).abs().mean() > 5


def test_a_complete_set_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    paths = make_synthetic_videos(root, 3, num_classes=2)
    before = [path.stat().st_mtime_ns for path in paths]
    assert make_synthetic_videos(root, 3, num_classes=2) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    message = (
        f"`root` {str(root)!r} exists and does not hold this synthetic set; "
        "remove it or choose another folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_synthetic_videos(root, 4, num_classes=2)


def test_an_interrupted_set_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = iivcl.data._synthetic._encode

    def stop_at_the_third(path: Path, *arguments: Any) -> None:
        if path.stem == "000002":
            raise KeyboardInterrupt
        encode(path, *arguments)

    monkeypatch.setattr(iivcl.data._synthetic, "_encode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_videos(tmp_path / "set", 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_videos": 0}, "`num_videos` must be at least 1; got 0"),
        ({"num_classes": 17}, "`num_classes` must be in [2, 16]; got 17"),
        ({"num_frames": 1}, "`num_frames` must be at least 2; got 1"),
        ({"size": 31}, "`size` must be even and at least 16; got 31"),
    ],
)
def test_bad_input(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_synthetic_videos(tmp_path / "set", **({"num_videos": 2} | change))
    assert list(tmp_path.iterdir()) == []
