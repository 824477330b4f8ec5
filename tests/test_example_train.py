"""The training example from the command line, as a user starts it on a folder of videos."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from example_runs import EXAMPLES, load, start
from PIL import Image
from torch import Tensor

from iivcl.data import make_synthetic_videos
from iivcl.diagnostics import neighbor_purity
from iivcl.queues import Neighbors

EXAMPLE = EXAMPLES / "train_minimal.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "videos"
    make_synthetic_videos(folder, 16, num_classes=2)
    return folder


def test_it_trains_on_a_folder_and_writes_a_checkpoint_that_can_be_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.pt"
    options = ("--steps", 3, "--batch-size", 4, "--data", folder, "--out", out)
    command = [sys.executable, str(EXAMPLE), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"loss=[\d.]+, std=0\.\d+, purity=[\d.nan]+", done.stderr)
    first, _, result, *verdict = done.stdout.splitlines()
    number = r"[01]\.\d{3}"
    assert first == f"encoder: {out}"
    assert re.fullmatch(
        rf"retrieval R@1: random init {number} -> trained {number} \(chance {number}, 4 videos\)",
        result,
    )
    before, after = (float(figure) for figure in re.findall(number, result)[:2])
    if after < before + 0.05:  # of four videos, three steps may have found one more
        assert verdict[0].startswith("It did not learn")
        assert "more steps" in "".join(verdict)
    else:
        assert verdict == []
    state = torch.load(out, weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt"]

    picture = tmp_path / "neighbors.png"
    shown = start("show_neighbors", out, picture, "--data", folder, capsys=capsys)
    assert shown.status == 0, shown.err
    purity = r"purity of 3 neighbours of all held-out videos: [01]\.\d{3}"
    assert re.fullmatch(rf"{purity}\npicture: {re.escape(str(picture))}", shown.out.strip())
    with Image.open(picture) as image:
        assert image.size == (1460, 270)  # two rows


def test_files_without_classes_of_which_some_cannot_be_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar shows the similarity of neighbours, and what was left out is named at the end."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [*map(str, folder.glob("*/*.mp4")), "broken.mp4", "gone.mp4", "gone too.mp4"]
    manifest = tmp_path / "videos.jsonl"
    # Held out is one that can be read: all others are read in an epoch of 6 steps.
    splits = ["test", *["train"] * (len(paths) - 1)]
    lines = [
        f'{{"path": "{path}", "split": "{split}"}}\n'
        for path, split in zip(paths, splits, strict=True)
    ]
    manifest.write_text("".join(lines))
    options = ("--steps", 6, "--batch-size", 3, "--data", manifest)
    done = start("train_minimal", *options, capsys=capsys)
    assert done.status == 0, done.err
    assert re.search(r"std=[\d.]+, similarity=[-\d.nan]+", done.err)
    assert "retrieval" not in done.out
    *_, summary, first, second, third = done.out.splitlines()
    assert summary == "Left out, since they could not be read: 3 videos, such as"
    for name in ("broken.mp4", "gone.mp4", "gone too.mp4"):
        assert sum(f"{name}: " in line for line in (first, second, third)) == 1


def test_purity_knows_the_class_of_every_row_though_groups_have_several(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """As of people, who do everything: each group is one video of both classes."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    both = zip(*(sorted(kind.iterdir()) for kind in kinds), strict=True)
    rows = [f"{path},{i},{group}" for group, pair in enumerate(both) for i, path in enumerate(pair)]
    manifest = tmp_path / "people.csv"
    manifest.write_text("path,label,group\n" + "\n".join(rows))
    seen: list[Tensor] = []

    def purity(neighbors: Neighbors, row_labels: Tensor, labels: Tensor) -> Tensor:
        seen.append(row_labels.clone())
        return neighbor_purity(neighbors, row_labels, labels)

    monkeypatch.setattr(load("train_minimal"), "neighbor_purity", purity)
    options = ("--steps", 4, "--batch-size", 4, "--data", manifest)  # 12 videos: 3 steps an epoch
    assert start("train_minimal", *options, capsys=capsys).status == 0
    counts = [[int((labels == own).sum()) for own in (-1, 0, 1)] for labels in seen]
    assert counts[3] == [512 - 24, 12, 12]
    assert [512 - none for none, *_ in counts] == [0, 8, 16, 24]


@pytest.mark.parametrize(
    ("rows", "trained", "held_out"),
    [
        (["a,0,x,train", "b,1,y,train", "c,0,z,test", "d,0,w,val"], 2, 2),  # by the column
        ([f"{n},0,{n // 2}," for n in range(8)], 6, 2),  # by groups: one in four, whole
    ],
)
def test_no_group_is_trained_on_and_held_out(
    tmp_path: Path, rows: list[str], trained: int, held_out: int
) -> None:
    manifest = tmp_path / "videos.csv"
    manifest.write_text("path,label,group,split\n" + "\n".join(rows))
    train, test = load("train_minimal").read_videos(manifest)
    assert set(train.ids.tolist()).isdisjoint(test.ids.tolist())
    assert (len(train.paths), len(test.paths)) == (trained, held_out)


def test_what_cannot_work_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object, example: str = "train_minimal") -> str:
        done = start(example, *arguments, capsys=capsys)
        assert done.status == 2
        return done.err.splitlines()[-1].removeprefix(f"{example}: error: ")

    assert refused("--data", tmp_path) == f"--data: at least 2 videos are needed; {tmp_path} has 0"
    message = "--batch-size must be 1 to 12, the videos to train on"
    assert refused("--data", folder) == message
    assert refused("--data", folder, "--batch-size", 0) == message
    few = ("--data", folder, "--batch-size", 4)
    assert refused(*few, "--steps", 0) == "--steps must be at least 1; got 0"
    others = tmp_path / "others.csv"
    others.write_text("path,split\na,training\nb,validation\n")
    message = f"--data: {others} has no split 'train', but ['training', 'validation']"
    assert refused("--data", others) == message
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("path,group,split\n" + "a,x,train\nb,y,train\nc,x,test\n")
    assert refused("--data", mixed) == (
        f"--data: {tmp_path / 'c'} is of split 'test', and its group of split 'train' as well; put "
        "each group into one split"
    )
    gone = tmp_path / "gone"
    assert refused("--data", gone) == f"--data: no such file or folder: {gone}"
    message = f"--data: `path` must end in .csv or .jsonl; got {str(EXAMPLE)!r}"
    assert refused("--data", EXAMPLE) == message
    assert "invalid choice: 'resnet'" in refused("--backbone", "resnet")
    assert "invalid choice: 40" in refused("--classes", 40)
    gone = tmp_path / "gone" / "encoder.pt"
    for out in (gone, tmp_path):
        message = f"--out: not a file in a folder that is there: {out}"
        assert refused("--data", folder, "--out", out) == message
    message = f"{EXAMPLE} does not hold the small encoder of train_minimal.py"
    arguments = (EXAMPLE, "neighbors.png", "--data", folder)
    assert refused(*arguments, example="show_neighbors") == message
    assert "No such file" in refused(gone, "neighbors.png", example="show_neighbors")


def test_it_is_short_enough_to_be_copied() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 230


def test_small_encoder_sees_what_changes_and_no_still_picture() -> None:
    encoder = load("train_minimal").SmallEncoder().eval()
    g = torch.Generator().manual_seed(0)
    clips, picture = (
        torch.rand(2, 3, 9, 32, 32, generator=g),
        torch.rand(1, 3, 1, 32, 32, generator=g),
    )
    with torch.no_grad():
        features = encoder(clips)
        assert features.shape == (2, encoder.feature_dim)
        torch.testing.assert_close(encoder(clips + picture), features, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encoder(clips.flip(2)), features, rtol=1e-2)
        assert torch.equal(encoder(picture.expand(2, -1, 9, -1, -1))[0], encoder(0 * clips)[0])
