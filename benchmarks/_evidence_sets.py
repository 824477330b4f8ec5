"""The sets of the evidence: what is generated, what is read, and who is left out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iivcl import augment
from iivcl.data import make_synthetic_videos, open_video, read_manifest

GENERATED: dict[str, dict[str, Any]] = {
    "shapes-8": {"num_videos": 480, "num_classes": 8},
    "shapes-16": {"num_videos": 960, "num_classes": 16},
    "figures": {"kind": "figures", "num_videos": 520, "num_classes": 13, "size": 64},
    "figures-takes": {
        "kind": "figures", "num_videos": 780, "num_classes": 13, "size": 64, "takes": 3
    },
    "figures-tail": {
        "kind": "figures", "num_videos": 780, "num_classes": 13, "size": 64, "takes": 3,
        "imbalance": 10.0,
    },
}  # fmt: skip
PEOPLE = ("subject", "person", "group")  # columns of a manifest that may say who is seen
FOLDS = 5
SIZE = 32  # pixels of a clip; videos are kept a fourth larger


class Videos(NamedTuple):
    """A set in memory: N videos with what is known of them."""

    frames: list[Tensor]  # (3, T, H, W) uint8 of one H and W
    labels: Tensor  # (N,)
    takes: Tensor  # (N,) videos of one number show the same thing
    people: Tensor  # (N,)
    splits: list[str]  # the official ones, or empty
    kind: str  # "shapes" or "real", of which the example knows settings

    def ids(self, of: str) -> Tensor:
        """Number what counts as one video."""
        number: Tensor = torch.arange(len(self.labels)) if of == "videos" else getattr(self, of)
        return number


def load_generated(name: str, folder: Path) -> Videos:
    root = folder / name
    make_synthetic_videos(root, **GENERATED[name])
    return load(root / "manifest.csv", "shapes" if name.startswith("shapes") else "real")


def load(manifest: Path, kind: str = "real") -> Videos:
    """Decode all videos of a manifest that names people, by the columns of `PEOPLE`."""
    videos = read_manifest(manifest)
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    column = next((name for name in PEOPLE if rows[0].get(name)), None)
    if column is None:
        raise ValueError(f"{manifest} must have one of the columns {', '.join(PEOPLE)}")
    names = sorted({row[column] for row in rows})
    people = torch.tensor([names.index(row[column]) for row in rows])
    # Without groups, the recordings of a person that do the same are takes.
    takes = videos.ids if "group" in rows[0] else people * len(rows) + videos.labels
    frames = [read_frames(path) for path in videos.paths]
    height, width = (min(video.shape[i] for video in frames) for i in (-2, -1))
    crop = augment.CenterCrop((height, width))
    frames = [crop(video[None])[0] for video in frames]
    return Videos(frames, videos.labels, takes, people, list(videos.splits), kind)


def read_frames(path: str) -> Tensor:
    with open_video(path) as video:
        return video.read([list(range(video.num_frames))], short_side=SIZE * 5 // 4)[0]


def fold(videos: Videos, number: int) -> tuple[Tensor, Tensor]:
    """Leave some of the training people out: the places of videos to train on and of others.

    The official test people are in neither. People are dealt to the folds by their first class, so
    that people who do one thing only leave every class in every fold.
    """
    training = torch.tensor([split in ("", "train") for split in videos.splits or [""]])
    training = training.expand(len(videos.labels))
    people = videos.people[training].unique().tolist()
    first = {person: int(videos.labels[videos.people == person].min()) for person in people}
    left_out = sorted(people, key=lambda person: (first[person], person))[number::FOLDS]
    out = torch.isin(videos.people, torch.tensor(left_out))
    return (training & ~out).nonzero()[:, 0], (training & out).nonzero()[:, 0]


def official(videos: Videos) -> tuple[Tensor, Tensor]:
    """Give the official split, which is for the end."""
    split = torch.tensor([split == "train" for split in videos.splits])
    return split.nonzero()[:, 0], (~split).nonzero()[:, 0]
