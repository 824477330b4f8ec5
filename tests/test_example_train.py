"""The training example from the command line, as a user starts it on a folder of videos."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from iivcl.data import make_synthetic_videos

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_minimal.py"


def run(*arguments: object, example: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("--steps", 3, "--batch-size", 4, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen videos of two classes, two takes each."""
    folder = tmp_path_factory.mktemp("example") / "videos"
    make_synthetic_videos(folder, 16, num_classes=2, takes=2)
    return folder


def test_it_trains_on_a_folder_and_writes_a_checkpoint_that_can_be_drawn(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "encoder.pt"
    done = train("--data", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    number = r"[01]\.\d{3}"
    assert f"encoder: {out}\n" in done.stdout
    assert re.search(
        rf"^retrieval R@1: random init {number} -> trained {number} \(chance {number}, 4 videos\)$",
        done.stdout,
        re.MULTILINE,
    )
    assert re.search(r"loss=[\d.]+, std=0\.\d+, purity=[\d.nan]+", done.stderr)
    state = torch.load(out, weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt"]

    show, picture = EXAMPLE.with_name("show_neighbors.py"), tmp_path / "neighbors.png"
    done = run(out, picture, "--data", folder, example=show)
    assert done.returncode == 0, done.stderr
    purity = r"purity of 3 neighbours of all 4 held-out videos: [01]\.\d{3}"
    assert re.fullmatch(rf"{purity}\npicture: {re.escape(str(picture))}", done.stdout.strip())
    with Image.open(picture) as image:
        assert image.size == (1460, 270)  # two rows

    done = run(EXAMPLE, picture, "--data", folder, example=show)
    assert one_line(done) == f"{EXAMPLE} does not hold the small encoder of train_minimal.py"


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the message of a run that was refused: usage, and then one line."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].split("error: ", 1)[1]


def test_it_says_that_it_did_not_learn_and_what_to_change(folder: Path) -> None:
    done = train("--data", folder)  # three steps cannot
    assert done.returncode == 0, done.stderr
    assert "It did not learn" in done.stdout.splitlines()[-2]
    assert "At the top of this file, set more steps" in done.stdout


def test_a_file_that_cannot_be_read_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    rows = csv.DictReader((folder / "manifest.csv").read_text().splitlines())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    lines = [f"{folder / row['path']},{row['label']},{row['group']}" for row in rows]
    lines += ["broken.mp4,circle,8", "gone.mp4,circle,9", "gone too.mp4,circle,10"]
    manifest = tmp_path / "videos.csv"
    manifest.write_text("path,label,group\n" + "\n".join(lines))
    done = train("--data", manifest)
    assert done.returncode == 0, done.stderr
    *_, summary, first, second, third = done.stdout.splitlines()
    assert summary == "Left out, since they could not be read: 3 videos, such as"
    for name in ("broken.mp4", "gone.mp4", "gone too.mp4"):
        assert sum(f"{name}: " in line for line in (first, second, third)) == 1


@pytest.mark.parametrize(
    ("rows", "trained", "held_out"),
    [
        # By the column: the training video of a group that is held out as well is left out.
        (["a,0,x,train", "b,1,y,train", "c,0,z,test", "d,0,x,test"], ["b"], ["c", "d"]),
        # By groups: one in four, whole.
        ([f"{n},0,{n // 2}," for n in range(8)], None, None),
    ],
)
def test_no_group_is_trained_on_and_held_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[str],
    trained: list[str] | None,
    held_out: list[str] | None,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    from train_minimal import read_videos

    manifest = tmp_path / "videos.csv"
    manifest.write_text("path,label,group,split\n" + "\n".join(rows))
    train, test = read_videos(manifest)
    assert set(train.ids.tolist()).isdisjoint(test.ids.tolist())
    if trained is not None:
        assert [Path(path).name for path in train.paths] == trained
        assert [Path(path).name for path in test.paths] == held_out
    else:
        assert (len(train.paths), len(test.paths)) == (6, 2)


def test_videos_without_classes_show_the_similarity_of_neighbours(
    folder: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "videos.jsonl"
    manifest.write_text("\n".join(f'{{"path": "{path}"}}' for path in folder.glob("*/*.mp4")))
    done = train("--data", manifest)
    assert done.returncode == 0, done.stderr
    assert re.search(r"std=[\d.]+, similarity=[-\d.nan]+", done.stderr)
    assert "retrieval" not in done.stdout


def test_what_cannot_work_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    message = f"--data: {tmp_path} has 0 videos to train on; give more, or a smaller --batch-size"
    assert one_line(run("--data", tmp_path)) == message
    gone = tmp_path / "gone"
    assert one_line(run("--data", gone)) == f"--data: no such file or folder: {gone}"
    message = f"--data: `path` must end in .csv or .jsonl; got {str(EXAMPLE)!r}"
    assert one_line(run("--data", EXAMPLE)) == message
    assert "invalid choice: 'resnet'" in one_line(run("--backbone", "resnet"))
    gone = tmp_path / "gone" / "encoder.pt"
    assert one_line(run("--data", folder, "--out", gone)) == f"--out: no such folder: {gone.parent}"


def test_it_is_short_enough_to_be_copied() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 235
