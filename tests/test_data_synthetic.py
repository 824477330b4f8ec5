"""The generated set: repeatable, complete or absent, and balanced over its classes."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iivcl.data._figures
import iivcl.data._synthetic
from iivcl.data import make_synthetic_videos, probe, read_clips, read_manifest

KINDS = pytest.mark.parametrize("kind", ["shapes", "figures"])


def frames(path: Path) -> torch.Tensor:
    return read_clips(path, torch.arange(24)[None])[0]


@pytest.mark.parametrize(("kind", "num_classes"), [("shapes", 16), ("figures", 13)])
def test_files_are_real_videos_of_balanced_classes(
    tmp_path: Path, kind: Any, num_classes: int
) -> None:
    paths = make_synthetic_videos(
        tmp_path / "set", 2 * num_classes, kind=kind, num_classes=num_classes
    )
    assert Counter(path.parent.name for path in paths).most_common()[0][1] == 2
    assert len({path.parent.name for path in paths}) == num_classes
    info = probe(paths[0])
    assert (info.num_frames, info.height, info.width, round(info.fps)) == (24, 48, 48, 12)
    video = frames(paths[0]).float()
    assert (video[:, 1:] - video[:, :-1]).abs().mean() > 0.5  # something moves


@KINDS
def test_a_video_depends_on_seed_and_number_alone(tmp_path: Path, kind: Any) -> None:
    small = make_synthetic_videos(tmp_path / "small", 2, kind=kind, num_classes=2)
    large = make_synthetic_videos(tmp_path / "large", 6, kind=kind, num_classes=2)
    other = make_synthetic_videos(tmp_path / "other", 2, kind=kind, num_classes=2, seed=1)
    by_name = {path.name: path for path in large}
    for path, different in zip(small, other, strict=True):
        video = frames(path).float()
        # Not bytes: encoders that run side by side may settle on slightly different ones.
        assert (video - frames(by_name[path.name])).abs().mean() < 1
        assert (video - frames(different)).abs().mean() > 5


@KINDS
def test_takes_of_a_group_are_alike_and_not_the_same(tmp_path: Path, kind: Any) -> None:
    root = tmp_path / "set"
    make_synthetic_videos(root, 6, kind=kind, num_classes=2, takes=2)
    manifest = read_manifest(root / "manifest.csv")
    first, second = manifest.labels[0].item(), manifest.labels[2].item()
    assert manifest.labels.tolist() == [first, first, second, second, first, first]
    assert manifest.ids.tolist() == [0, 0, 1, 1, 2, 2]
    mean = torch.stack([frames(Path(path)).float().mean(1) for path in manifest.paths])
    difference = (mean[:, None] - mean).abs().flatten(2).mean(2)  # (6, 6)
    same, others = difference[0, 1], difference[0, 2:]
    assert 0 < same < 0.5 * others.min()


def test_one_take_is_the_first_of_several(tmp_path: Path) -> None:
    (alone,) = make_synthetic_videos(tmp_path / "alone", 1, kind="figures", num_classes=2)
    first, _ = make_synthetic_videos(tmp_path / "both", 2, kind="figures", num_classes=2, takes=2)
    assert (frames(alone).float() - frames(first).float()).abs().mean() < 1


def test_classes_have_a_long_tail(tmp_path: Path) -> None:
    make_synthetic_videos(tmp_path / "set", 75, num_classes=3, imbalance=16.0, size=16)
    manifest = read_manifest(tmp_path / "set" / "manifest.csv")
    counts = np.bincount(manifest.labels).tolist()
    # Shares 16 : 4 : 1 of 75, each within one video, in the order of the motions.
    names = ["left_right", "up_down", "circle"]
    expected = dict(zip(names, (75 * 16 / 21, 75 * 4 / 21, 75 / 21), strict=True))
    assert sum(counts) == 75
    for name, count in zip(manifest.classes, counts, strict=True):
        assert abs(count - expected[name]) < 1


def test_figures_stand_on_a_floor_and_keep_their_limbs() -> None:
    """Every limb has its length in every frame, and the lowest point is the floor but for jumps."""
    phase = np.linspace(0, 2 * np.pi, 24)
    beats = (
        phase,
        (1 - np.cos(phase)) / 2,
        np.maximum(0, np.sin(phase)),
        np.maximum(0, -np.sin(phase)),
    )
    for name, motion in iivcl.data._figures.FIGURE_MOTIONS.items():
        points, radii, colours = iivcl.data._figures._body(
            motion(*beats), 24, np.random.default_rng(0)
        )
        length = np.linalg.norm(points[1] - points[0], axis=-1)  # (T, C)
        assert points.shape == (2, 24, len(radii), 3)
        assert colours.shape == (len(radii), 3)
        assert np.ptp(length, axis=0)[radii < 0.1].max() < 1e-9, name  # of all but the torso
        lowest = points[..., 1].min(axis=(0, 2))
        assert lowest.min() > 0.04, name
        assert (np.ptp(lowest) > 0.05) == (name in ("jump", "jumping_jack")), name
        assert np.ptp(points, axis=1).max() > 0.2, name  # something moves by 20 cm


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


def test_numbers_may_be_of_numpy(tmp_path: Path) -> None:
    root = tmp_path / "set"
    plain = {"num_classes": 2, "num_frames": 3, "size": 16, "fps": 5, "seed": 4}
    numpy = {name: np.int64(value) for name, value in plain.items()}
    paths = make_synthetic_videos(root, np.int32(3), imbalance=np.float32(2), **numpy)
    assert probe(paths[2]).num_frames == 3
    assert make_synthetic_videos(root, 3, imbalance=2, **plain) == paths


def test_two_that_make_one_set_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, encode = tmp_path / "set", iivcl.data._synthetic._encode

    def be_overtaken(path: Path, *arguments: Any) -> None:
        monkeypatch.setattr(iivcl.data._synthetic, "_encode", encode)
        make_synthetic_videos(root, num_videos, num_classes=2)
        encode(path, *arguments)

    for num_videos in (1, 2):
        monkeypatch.setattr(iivcl.data._synthetic, "_encode", be_overtaken)
        if num_videos == 1:
            assert make_synthetic_videos(root, 1, num_classes=2) == [*root.glob("*/*.mp4")]
            shutil.rmtree(root)
        else:  # by a set that is another
            with pytest.raises(ValueError, match="exists and does not hold this synthetic set"):
                make_synthetic_videos(root, 1, num_classes=2)
        assert [path for path in tmp_path.iterdir() if path != root] == []


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
        ({"kind": "people"}, "`kind` must be one of ('shapes', 'figures'); got 'people'"),
        (
            {"kind": "figures", "num_classes": 14},
            "`num_classes` must be in [2, 13]; got 14",
        ),
        ({"takes": 0}, "`takes` must be at least 1; got 0"),
        ({"imbalance": 0.5}, "`imbalance` must be at least 1 and finite; got 0.5"),
        ({"imbalance": float("nan")}, "`imbalance` must be at least 1 and finite; got nan"),
        ({"num_videos": 0}, "`num_videos` must be at least 1; got 0"),
        ({"num_classes": 17}, "`num_classes` must be in [2, 16]; got 17"),
        ({"num_frames": 1}, "`num_frames` must be at least 2; got 1"),
        ({"size": 31}, "`size` must be even; got 31"),
    ],
)
def test_bad_input(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_synthetic_videos(tmp_path / "set", **({"num_videos": 2} | change))
    assert list(tmp_path.iterdir()) == []
