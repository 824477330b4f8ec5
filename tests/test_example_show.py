"""The pictures of neighbours: of the small encoder, and of what `evaluate.py` has found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from example_runs import load, start
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn

from iivcl.backbones import ProjectionHead
from iivcl.data import Manifest, make_synthetic_videos


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shown") / "videos"
    return make_synthetic_videos(folder, 7, num_classes=2, num_frames=20, size=40)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script, file = load("train_minimal"), tmp_path_factory.mktemp("encoder") / "encoder.pt"
    backbone = script.SmallEncoder()
    head = ProjectionHead(backbone.feature_dim, 256, script.DIM, num_layers=2, norm="batch")
    torch.save(nn.Sequential(backbone, head).state_dict(), file)
    return file


def write_list(file: Path, paths: list[Path], rows: str) -> Path:
    """List videos, of which ``rows`` says the classes and splits: 'x/train' or '/test'."""
    lines = [f"{p},{row.replace('/', ',')}" for p, row in zip(paths, rows.split(), strict=True)]
    file.write_text("\n".join(["path,label,split", *lines]))
    return file


def test_a_video_without_a_class_is_unknown_and_has_no_row(
    paths: list[Path], encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "x/train /train y/train x/test /test y/test y/test"
    manifest = write_list(tmp_path / "videos.csv", paths, rows)
    picture = tmp_path / "a.png"
    done = start("show_neighbors", encoder, picture, "--data", manifest, capsys=capsys)
    assert done.status == 0, done.err
    axes = plt.gcf().axes
    assert [axis.get_ylabel() for axis in axes[::4]] == ["x", "y"]
    for own, first in (("x", 0), ("y", 4)):
        shown = {axis.get_xlabel().partition(", ")[2] for axis in axes[first + 1 : first + 4]}
        assert shown == {"", "unknown", *({"x", "y"} - {own})}


@pytest.mark.parametrize(
    ("rows", "picture", "message"),
    [
        ("x/train x/train x/test y/test", "a.png", "needs: 2 and 2"),
        ("x/train x/train x/train /test", "a.png", "needs: 3 and 0"),
        ("x/train x/train x/train x/test", "a.jpg", "the picture must be a .png file; got {0}"),
        ("x/train x/train x/train x/test", "a", "the picture must be a .png file; got {0}"),
        ("x/train x/train x/train x/test", "gone/a.png", "no such folder: {0.parent}"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_line(
    rows: str, picture: str, message: str, paths: list[Path], encoder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    needs = "--data must have 3 training videos and a held-out one with a class that can be read"
    message = message.replace("needs:", f"{needs}; got").format(tmp_path / picture)
    manifest = write_list(tmp_path / "videos.csv", paths[: rows.count("/")], rows)
    given = (encoder, tmp_path / picture, "--data", manifest)
    done = start("show_neighbors", *given, capsys=capsys)
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"show_neighbors: error: {message}"
    assert list(tmp_path.iterdir()) == [manifest]


def test_videos_that_cannot_be_read_are_named_in_one_line(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{n}.mp4" for n in range(4)]
    for file in files:
        file.write_bytes(b"no video")
    manifest = write_list(tmp_path / "v.csv", files, "x/train x/train x/train x/test")
    given = (encoder, tmp_path / "a.png", "--data", manifest)
    done = start("show_neighbors", *given, capsys=capsys)
    assert done.status == 2
    message = f"none of the 1 videos of a batch can be read: {files[3]}: Invalid data"
    assert done.err.splitlines()[-1].startswith(f"show_neighbors: error: {message}")


@pytest.mark.parametrize(
    ("queries", "gallery", "shown"), [(2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 5, 3), (3, 0, 2)]
)
def test_evaluation_shows_as_many_neighbours_as_there_are(
    queries: int, gallery: int, shown: int, paths: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where one is left out, it is none of its own."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    num = queries + gallery
    videos = Manifest(list(map(str, paths[:num])), torch.arange(num) % 2, torch.arange(num), [])
    is_query = torch.arange(num) < queries if gallery else None
    features = torch.randn(num, 8, generator=torch.Generator().manual_seed(0))
    drawn = load("_pictures")
    drawn.draw_pictures(tmp_path, features, torch.arange(num), videos, is_query, True)
    with Image.open(tmp_path / "neighbors.png") as image:
        assert image.size[0] == 8 + (1 + shown) * (drawn.FRAMES * drawn.PIXELS + 8)
