"""The example that detects actions, on generated videos in which two shapes move at once."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pretraining
import pytest
import tiny_encoder
import torch
import videos
from example_runs import EXAMPLES
from loading import workers_end
from PIL import Image
from torch import Tensor

from iivcl.data import (
    ActionBoxes,
    DecodeError,
    make_synthetic_videos,
    open_video,
    read_ava_boxes,
    read_clips,
)
from iivcl.evaluation import detection_map

TILE, HEIGHT, WIDTH = 40, 56, 112
NUMBERS = {"left_right": 1, "up_down": 2, "circle": 4}  # 3 is not measured, and 5 does not occur
LABELS = "".join(
    f'item {{\n  name: "{name}"\n  id: {number}\n}}\n'
    for name, number in {**NUMBERS, "fly": 5}.items()
)
SMALL = [
    "--backbone=tiny_encoder:with_map", "--num-actions=5", "--frames=8", "--stride=1", "--size=48",
    "--zoom", "48", "56", "--test-size=56", "--batch-size=4", "--epochs=2", "--warmup-epochs=0",
    "--drop-epochs", "10", "--workers=0", "--lr=0.1", "--dropout=0.2",
]  # fmt: skip


def write_scenes(root: Path, scenes: int, held_out: int) -> Path:
    """Write videos of two moving shapes, each in a box of its own, and AVA's files about them.

    The last ``held_out`` are to test on. Every box does 3 as well. A detector has moved its boxes
    a little, and it has found one more in each of its keyframes, of which it is not sure.
    """
    rng = np.random.default_rng(0)
    tiles = make_synthetic_videos(root / "tiles", 2 * scenes, num_classes=3, size=TILE)
    tiles = [tiles[i] for i in rng.permutation(len(tiles))]
    lists: dict[str, list[str]] = {"train": [], "test": [], "detected": []}
    for scene in range(scenes):
        side = "train" if scene < scenes - held_out else "test"
        frames = np.full((24, HEIGHT, WIDTH, 3), 40, np.uint8)
        for half, tile in enumerate(tiles[2 * scene : 2 * scene + 2]):
            top = int(rng.integers(HEIGHT - TILE + 1))
            left = half * WIDTH // 2 + int(rng.integers(WIDTH // 2 - TILE + 1))
            shown = read_clips(tile, [list(range(24))])[0].permute(1, 2, 3, 0)  # (T, H, W, C)
            frames[:, top : top + TILE, left : left + TILE] = shown
            box = np.array([left, top, left + TILE, top + TILE]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
            near = np.clip(box + rng.uniform(-0.02, 0.02, 4), 0, 1)
            edges, moved = (",".join(f"{edge:.6f}" for edge in b) for b in (box, near))
            for second in ("0901", "0901.5"):
                numbers = (NUMBERS[tile.parent.name], 3)
                lists[side] += [f"v{scene:03},{second},{edges},{n},{half}" for n in numbers]
                if side == "test":
                    lists["detected"] += [
                        f"v{scene:03},{second},{moved},,0.95",
                        f"v{scene:03},{second},0.4,0.4,0.6,0.6,,0.5",
                    ]
        videos.write_video(root / "videos" / f"v{scene:03}.mp4", frames=list(frames), fps=12)
    for name, rows in lists.items():
        (root / f"{name}.csv").write_text("\n".join(dict.fromkeys(rows)) + "\n")
    (root / "actions.pbtxt").write_text(LABELS)
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("detection"), 10, 3)


def arguments(scenes: Path, out: Path, *options: object) -> list[str]:
    files = [f"--{name}={scenes / f'{name}.csv'}" for name in ("train", "test")]
    given = ["random", scenes / "videos", f"--out={out}", *files, "--begin=900"]
    return [*map(str, given), f"--actions={scenes / 'actions.pbtxt'}", *SMALL, *map(str, options)]


def finetune(scenes: Path, out: Path, *options: object) -> dict[str, Any]:
    assert start(scenes, out, *options) == 0
    return json.loads((out / "result.json").read_text())  # type: ignore[no-any-return]


def start(scenes: Path, out: Path, *options: object) -> int:
    try:
        return int(pretraining.load("finetune_detection").main(arguments(scenes, out, *options)))
    finally:
        pretraining.end_group()


def read_detections(file: Path, num_actions: int = 5) -> ActionBoxes:
    """Read what is written for AVA's server, one row for each box and action."""
    scores: dict[tuple[Any, ...], Tensor] = {}
    for line in file.read_text().splitlines():
        video, second, *box, action, score = line.split(",")
        key = (video, float(second), *map(float, box))
        row = scores.setdefault(key, torch.full((num_actions,), -math.inf))
        row[int(action) - 1] = float(score)
    boxes = torch.tensor([key[2:] for key in scores])
    actions = torch.stack(list(scores.values()))
    return ActionBoxes([key[:2] for key in scores], boxes, actions, torch.ones(len(boxes)))


def test_the_result_is_that_of_the_detections_and_says_how_it_was_measured(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "excluded.csv").write_text("v009,0901\nv000,0901\n")
    boxes = f"--test-boxes={scenes / 'detected.csv'}"
    excluded = f"--exclude={tmp_path / 'excluded.csv'}"
    report = finetune(scenes, tmp_path / "run", boxes, excluded, "--iou=0.6")
    last, best = report["results"]["last"], report["results"]["best"]
    assert last["epoch"] == 2
    assert best["mAP"] >= last["mAP"]
    assert last["detected_boxes"] == 10  # of 6 keyframes of 2 persons, without an excluded one
    assert last["keyframes"] == 5
    assert last["true_boxes"]["fly"] == 0
    assert sum(last["true_boxes"].values()) == 10
    assert last["average_precision"].keys() == NUMBERS.keys() - {
        name for name, count in last["true_boxes"].items() if not count
    }
    assert (last["actions_that_occur"], last["actions"]) == (len(last["average_precision"]), 4)

    found = read_detections(tmp_path / "run" / "detections.csv")
    assert len(found.boxes) == 10
    truth = read_ava_boxes(scenes / "test.csv", num_actions=5)
    again = detection_map(found, truth, iou=0.6, classes=[1, 2, 4, 5], exclusions=[("v009", 901)])
    assert last["mAP"] == pytest.approx(again.mean_average_precision, abs=1e-6)

    assert report["data"]["boxes_below_min_score"] == 6
    assert report["data"]["boxes_in_training"] == 26
    assert report["data"]["excluded_keyframes"] == 2
    protocol = report["protocol"]
    assert protocol["measure"]["iou"] == 0.6
    assert protocol["boxes"]["test"].endswith("a score of at least 0.8")
    assert protocol["selection"].endswith("in this very test")
    shown = capsys.readouterr()
    assert f"mAP of the last epoch, 2: {last['mAP']:.4f}" in shown.out
    assert "step/s" in shown.err


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pretraining.load("finetune_detection")
    whole = finetune(scenes, tmp_path / "whole")
    save = module.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(scenes, tmp_path / "parts")
    assert not (tmp_path / "parts" / "result.json").exists()
    with pytest.raises(SystemExit, match=r"holds a run: go on with --resume auto$"):
        finetune(scenes, tmp_path / "parts")
    with pytest.raises(SystemExit, match=r"other settings: --lr 0\.3 \(was 0\.1\)$"):
        finetune(scenes, tmp_path / "parts", "--resume=auto", "--lr=0.3")
    assert finetune(scenes, tmp_path / "parts", "--resume=auto") == whole
    for name in ("log.jsonl", "detections.csv"):
        texts = [(tmp_path / run / name).read_text() for run in ("whole", "parts")]
        assert texts[0] == texts[1]
    states = [
        torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "parts")
    ]
    assert all(torch.equal(t, states[1]["model"][name]) for name, t in states[0]["model"].items())
    # A run that is over is tested no more, and a damaged one is named.
    assert finetune(scenes, tmp_path / "parts", "--resume=auto") == whole
    (tmp_path / "parts" / "last.pt").write_bytes(b"half")
    with pytest.raises(SystemExit, match=r"last\.pt is no checkpoint, or not whole \(\w+\)$"):
        finetune(scenes, tmp_path / "parts", "--resume=auto")


def test_keyframes_that_the_test_does_not_list_are_false_or_ignored(
    scenes: Path, tmp_path: Path
) -> None:
    rows = [row for row in (scenes / "test.csv").read_text().splitlines() if row[:4] != "v009"]
    (tmp_path / "test.csv").write_text("\n".join([*rows, "v009,0901"]))
    files = [f"--test={tmp_path / 'test.csv'}", f"--test-boxes={scenes / 'detected.csv'}"]
    for unlisted in ("false", "ignored"):
        out = tmp_path / unlisted
        report = finetune(scenes, out, *files, "--epochs=1", f"--unlisted={unlisted}")
        found = read_detections(out / "detections.csv")
        assert len(found.boxes) == 12
        gone = [("v009", 901.5)] if unlisted == "ignored" else []
        truth = read_ava_boxes(tmp_path / "test.csv", num_actions=5)
        again = detection_map(found, truth, classes=[1, 2, 4, 5], exclusions=gone)
        assert report["results"]["last"]["mAP"] == pytest.approx(again[0], abs=1e-6)
        assert report["protocol"]["measure"]["detections_in_unlisted_keyframes"] == unlisted


def test_it_begins_with_the_weights_of_a_checkpoint_and_ends_with_what_others_read(
    scenes: Path, tmp_path: Path
) -> None:
    weights = tiny_encoder.with_map().state_dict()
    about = {"method": "iivcl", "backbone": "tiny_encoder:with_map", "frames": 8, "stride": 1.0}
    torch.save({"model": weights, **about}, tmp_path / "encoder.pt")
    module = pretraining.load("finetune_detection")
    given = arguments(scenes, tmp_path / "run", "--epochs=1", "--lr=1e-30", "--drop-epochs")
    kept = [a for a in given[1:] if not re.match("--(frames|stride)=", a)]
    assert module.main([str(tmp_path / "encoder.pt"), *kept]) == 0
    report = json.loads((tmp_path / "run" / "result.json").read_text())
    assert report["encoder"]["backbone"] == "tiny_encoder:with_map"
    assert report["protocol"]["clip"]["frames"] == 8
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    for name, value in weights.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(best["model"][f"encoder.{name}"], value)
    assert best["backbone"] == about["backbone"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "best.pt", "detections.csv", "last.pt", "log.jsonl", "result.json",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_cut_and_mirrored_with_their_clip(seed: int) -> None:
    """Each box is painted in a colour of its own, so the clip shows where it has come to be."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[3, 5, 20, 30], [22, 1, 40, 12], [41, 32, 59, 39], [0, 31, 8, 40.0]])
    clip = torch.zeros(3, 2, 40, 60, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes.int().tolist(), start=1):
        clip[:, :, top:bottom, left:right] = number
    module = pretraining.load("_keyframes")
    view, moved, kept = module.crop_and_flip(clip, boxes, 24, generator)
    assert view.shape == (3, 2, 24, 24)
    for number, box, is_left in zip(range(1, 5), moved.tolist(), kept.tolist(), strict=True):
        rows, columns = (view[0, 1] == number).nonzero(as_tuple=True)
        assert is_left == (len(rows) > 0)
        if is_left:
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == [float(edge) for edge in edges]


def test_about_half_of_the_clips_are_mirrored_and_every_place_is_cut() -> None:
    crop_and_flip = pretraining.load("_keyframes").crop_and_flip
    clip = torch.arange(10).repeat(3, 1, 10, 1)
    firsts = []
    for seed in range(200):
        view, _, _ = crop_and_flip(clip, torch.zeros(0, 4), 8, torch.Generator().manual_seed(seed))
        firsts.append(tuple(view[0, 0, 0, [0, -1]].tolist()))
    assert set(firsts) == {(0, 7), (1, 8), (2, 9), (7, 0), (8, 1), (9, 2)}
    assert 70 < sum(first < last for first, last in firsts) < 130


@pytest.mark.parametrize(
    ("second", "rate", "expected"),
    [
        (1.0, None, [17, 19, 21, 23, 25, 27, 29, 31]),
        (1.0, 12.5, [9, 13, 17, 21, 25, 29, 33, 37]),
        (0.08, None, [0, 0, 0, 0, 2, 4, 6, 8]),
        (1.56, None, [31, 33, 35, 37, 39, 39, 39, 39]),
    ],
)
def test_the_keyframe_is_in_the_middle_of_its_clip(
    second: float, rate: float | None, expected: list[int], tmp_path: Path
) -> None:
    path = videos.write_video(tmp_path / "a.mp4", 40, fps=25)
    around = pretraining.load("_keyframes").frames_around
    args = Namespace(frames=8, stride=2.0, rate=rate)
    with open_video(path) as video:
        shown = videos.read_barcodes(video.read(around(video, second, args)[None]))
        assert shown[0].tolist() == expected
        with pytest.raises(
            DecodeError, match=r"a\.mp4: no frame at 1\.6 s, for the last is at 1\.56"
        ):
            around(video, 1.6, args)
        with pytest.raises(DecodeError, match=r"no frame at -0\.1 s"):
            around(video, -0.1, args)


def test_images_come_at_a_rate_that_is_given(tmp_path: Path) -> None:
    for number in range(20):
        Image.fromarray(videos.barcode(number)).save(tmp_path / f"{number}.png")
    around = pretraining.load("_keyframes").frames_around
    with open_video(tmp_path) as video:
        frames = around(video, 1.0, Namespace(frames=4, stride=2, rate=10))
        assert frames.tolist() == [6, 8, 10, 12]
        with pytest.raises(DecodeError, match="images come --rate a second"):
            around(video, 1.0, Namespace(frames=4, stride=2, rate=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train=gone.csv"], r"No such file .*gone\.csv'$"),
        (["--train={wrong}"], r"wrong\.csv, line 2: needs a box: .*; got 'v000,0901,5,5,9,9,1,1'$"),
        (["--test={empty}"], r"empty\.csv has no box that counts with an action of --actions$"),
        (["--train={empty}"], r"empty\.csv has no box that counts$"),
        (["--test-boxes={train}"], r"train\.csv has none of the keyframes of .*test\.csv$"),
        (["--test-boxes={detected}", "--min-score=0.99"], r"test has no box: a lower --min-score"),
        (["--train={other}"], r"videos lacks 1 videos of the lists, as \['v999'\]$"),
        (["--actions={train}"], r"train\.csv, line 1: needs item \{ name: "),
        (["--num-actions=4"], r"actions\.pbtxt has actions beyond --num-actions$"),
        (["--batch-size=15"], r"has 14 keyframes, and a step takes 15: use a smaller --batch"),
        (["--size=60"], r"--zoom must rise from at least --size 60; got 48 56$"),
        (["--zoom", "56", "48"], r"--zoom must rise from at least --size 48; got 56 48$"),
        (["--epochs=0"], r"--epochs must be above 0; got 0$"),
        (["--iou=0"], r"--iou must be in \(0, 1\]; got 0\.0$"),
        (["--dropout=1"], r"--dropout must be in \[0, 1\); got 1\.0$"),
        (["--layer-decay=0"], r"--layer-decay must be in \(0, 1\]; got 0\.0$"),
        (["--layer-decay=3"], r"--layer-decay must be in \(0, 1\]; got 3\.0$"),
        (["--weight-decay=-1"], r"--weight-decay must be at least 0; got -1\.0$"),
        (["--rate=0"], r"--rate must be above 0; got 0\.0$"),
        (["--warmup-epochs=-1"], r"--warmup-epochs must .* below --epochs 2; got -1\.0$"),
        (["--warmup-epochs=2"], r"--warmup-epochs must .* below --epochs 2; got 2\.0$"),
        (["--seed=-1"], r"--seed must be in \[0, 4294967296\); got -1$"),
        (["--workers=-1"], r"--workers must be at least 0; got -1$"),
        (["--backbone=tiny_encoder:with_norm"], r"with_norm is no VideoEncoder, which has a map"),
        (["--backbone=resnet"], r"--backbone resnet is not in iivcl\.backbones"),
        (["--out={train}"], r"(Not a directory|File exists).*train\.csv"),
    ],
)  # fmt: skip
def test_what_cannot_work_ends_in_one_line_and_leaves_nothing(
    scenes: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    lines = (scenes / "train.csv").read_text().splitlines()
    rows = {
        "wrong": [lines[0], "v000,0901,5,5,9,9,1,1"], "empty": [],
        "other": [*lines, lines[0].replace("v000", "v999")],
    }  # fmt: skip
    for name, text in rows.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(text))
    files = {name: tmp_path / f"{name}.csv" for name in rows}
    files |= {name: scenes / f"{name}.csv" for name in ("train", "detected")}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as error:
        finetune(scenes, tmp_path / "run", *(option.format(**files) for option in options))
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert len(error.value.code.splitlines()) == 1
    assert re.search(message, error.value.code), error.value.code
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".tmp", ".json")] == []
    assert sorted(set(tmp_path.iterdir()) - {tmp_path / "run"}) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_one_line_too(
    workers: int, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with workers_end():
        assert start(scenes, tmp_path / "run", "--begin=0", f"--workers={workers}") == 1
    message = r"^rank 0: \S+v00\d\.mp4: no frame at 90\S+ s, for the last is at 1\.9.*$"
    assert re.search(message, capsys.readouterr().err, re.MULTILINE)


def test_a_run_does_not_go_on_with_another_list(scenes: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    lines = (scenes / "train.csv").read_text().splitlines()
    train.write_text("\n".join(lines))
    given = (scenes, tmp_path / "run", f"--train={train}", "--epochs=1")
    whole = finetune(*given)
    train.write_text("\n".join(lines[:-4]))
    with pytest.raises(SystemExit, match=r"train\.csv was another list when \S+run was begun: bri"):
        finetune(*given, "--resume=auto")
    train.write_text("\n".join(lines))
    assert finetune(*given, "--resume=auto") == whole


def test_a_full_disk_is_one_line_and_leaves_no_half_a_file(scenes: Path, tmp_path: Path) -> None:
    message = r"^error: \S+best\.pt cannot be written; is the disk full\? .*$"
    with pytest.raises(SystemExit, match=message) as error, pretraining.small_disk(tmp_path):
        finetune(scenes, tmp_path / "run")
    assert len(str(error.value.code).splitlines()) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_help_fits_a_screen_and_a_half(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        pretraining.load("finetune_detection").main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 66
    assert max(map(len, lines)) <= 100


@pytest.mark.slow  # trains
def test_it_learns_what_moves_how(tmp_path: Path) -> None:
    """Far above the same boxes with scores at random."""
    scenes = write_scenes(tmp_path, 46, 16)
    report = finetune(
        scenes, tmp_path / "run", f"--test-boxes={scenes / 'detected.csv'}", "--epochs=8",
        "--lr=0.2", "--drop-epochs", "7", "--test-every=8",
    )  # fmt: skip
    found = read_detections(tmp_path / "run" / "detections.csv")
    truth = read_ava_boxes(scenes / "test.csv", num_actions=5)
    chance = np.mean([
        detection_map(
            found._replace(actions=torch.rand(found.actions.shape)), truth, classes=[1, 2, 4]
        ).mean_average_precision
        for _ in range(20)
    ])  # fmt: skip
    assert chance < 0.45
    assert report["results"]["last"]["mAP"] > 0.65


def on_two_ranks(
    patch: pytest.MonkeyPatch, scenes: Path, out: Path
) -> subprocess.CompletedProcess[str]:
    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    patch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(EXAMPLES / "finetune_detection.py"), *arguments(scenes, out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow  # starts real processes
def test_two_processes_classify_every_box_once_with_the_detector_that_they_save(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    done = on_two_ranks(monkeypatch, scenes, out)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "result.json").read_text())
    assert report["ranks"] == 2
    assert report["results"]["last"]["detected_boxes"] == 12
    found = read_detections(out / "detections.csv")
    assert len(found.boxes) == 12
    truth = read_ava_boxes(scenes / "test.csv", num_actions=5)
    again = detection_map(found, truth, classes=[1, 2, 4, 5])
    assert report["results"]["last"]["mAP"] == pytest.approx(again[0], abs=1e-6)

    module = pretraining.load("finetune_detection")
    args = module.parse_args(arguments(scenes, out))
    module.settle(args)
    detector = module.Detector(module.open_encoder(args)[0], args)
    detector.load_state_dict(torch.load(out / "last.pt", weights_only=True)["model"])
    testing = pretraining.load("_keyframes").Keyframes(module.Lists(args).test, args, train=False)
    scores = module.detect(detector, testing, args).actions[:, [0, 1, 3, 4]]
    torch.testing.assert_close(found.actions[:, [0, 1, 3, 4]], scores, rtol=0, atol=1e-5)


@pytest.mark.slow  # starts real processes
def test_the_rank_that_fails_says_why(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the test, the second rank reads the second video."""
    for path in scenes.iterdir():
        if path.name != "videos":
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(scenes / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "v008.mp4").write_bytes(b"no video")
    done = on_two_ranks(monkeypatch, tmp_path, tmp_path / "run")
    assert done.returncode != 0
    assert re.search(r"rank 1: \S+v008\.mp4: Invalid data.*$", done.stderr, re.MULTILINE)
