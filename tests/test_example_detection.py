"""The example that detects actions, on generated videos in which two shapes move at once."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pretraining
import pytest
import torch
import videos
from torch import Tensor

from iivcl.data import ActionBoxes, make_synthetic_videos, read_ava_boxes, read_clips
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
    module = pretraining.load("finetune_detection")
    assert module.main(arguments(scenes, out, *options)) == 0
    return json.loads((out / "result.json").read_text())  # type: ignore[no-any-return]
