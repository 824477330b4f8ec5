"""What the tests of `examples/finetune.py` share: a split set, a checkpoint, short runs."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pretraining
import tiny_encoder
import torch

from iivcl.data import make_synthetic_videos

SMALL = [
    "--batch-size=4", "--epochs=2", "--lr=0.05", "--schedule=cosine", "--log-every=1",
    "--workers=0", "--clips=2", "--crops=1", "--dropout=0.1", "--save-every=2",
    "--backbone=tiny_encoder:with_norm",
]  # fmt: skip
VIEWS = {"frames": 4, "stride": 1.0, "size": 32}


def write_set(folder: Path, in_training: int = 4) -> Path:
    """Generate 18 videos of three classes, of each the first ones for training, and list them."""
    make_synthetic_videos(folder, 18, num_classes=3, num_frames=12, size=40)
    seen: Counter[str] = Counter()
    lines = ["path,label,split"]
    for row in csv.DictReader((folder / "manifest.csv").read_text().splitlines()):
        seen[row["label"]] += 1
        split = "train" if seen[row["label"]] <= in_training else "test"
        lines.append(f"{row['path']},{row['label']},{split}")
    (folder / "split.csv").write_text("\n".join(lines))
    return folder / "split.csv"


def write_encoder(path: Path, seed: int = 1, of: str = "tiny_encoder:with_norm") -> Path:
    torch.manual_seed(seed)
    model = tiny_encoder.with_norm().state_dict()
    torch.save({"model": model, "backbone": of, **VIEWS}, path)
    return path


def finetune(
    encoder: Path | str, manifest: Path, out: Path, *options: str, stop: int | None = None
) -> int:
    """Run the example in this process; ``stop`` is the step at which it is told to stop."""
    module = pretraining.load("finetune")
    arguments = [str(encoder), str(manifest), f"--out={out}", *SMALL, *options]
    with pretraining.told_to_stop(module, stop):
        try:
            return int(module.main(arguments))
        finally:
            pretraining.end_group()


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)
