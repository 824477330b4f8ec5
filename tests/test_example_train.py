"""The training example from the command line, as a user starts it on a folder of videos."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from iivcl.data import make_synthetic_videos

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_minimal.py"


def run(*arguments: object, example: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_trains_on_a_folder_and_writes_a_checkpoint_that_can_be_drawn(tmp_path: Path) -> None:
    make_synthetic_videos(tmp_path / "videos", 16, num_classes=2)
    out = tmp_path / "encoder.pt"
    done = run("--data", tmp_path / "videos", "--steps", 3, "--batch-size", 4, "--out", out)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    number = r"[01]\.\d{3}"
    assert re.fullmatch(
        rf"retrieval R@1: random init {number} -> trained {number} \(chance {number}, 4 videos\)",
        last,
    )
    state = torch.load(out, weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pt", "videos"]

    show, picture = EXAMPLE.with_name("show_neighbors.py"), tmp_path / "neighbors.png"
    done = run(out, picture, "--data", tmp_path / "videos", example=show)
    assert done.returncode == 0, done.stderr
    purity = r"purity of 3 neighbours of all 4 held-out videos: [01]\.\d{3}"
    assert re.fullmatch(purity, done.stdout.strip())
    with Image.open(picture) as image:
        assert image.size == (1400, 260)  # two rows


def test_a_folder_without_videos_and_a_missing_one_are_clear_errors(tmp_path: Path) -> None:
    empty, missing = run("--data", tmp_path), run("--data", tmp_path / "gone")
    assert (empty.returncode, missing.returncode) == (2, 1)
    message = f"error: {tmp_path} holds 0 videos; give more, or a smaller --batch-size"
    assert empty.stderr.splitlines()[-1].endswith(message)
    message = f"FileNotFoundError: `root`: no such folder: {tmp_path / 'gone'}"
    assert missing.stderr.splitlines()[-1] == message


def test_it_is_short_enough_to_be_copied() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 150
