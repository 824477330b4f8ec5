"""The sets of the evidence: what is generated, what is read, and who is left out."""

from __future__ import annotations

import csv
import fcntl
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iivcl import augment
from iivcl.data import clip_indices, make_synthetic_videos, open_video, read_manifest

GENERATED: dict[str, dict[str, Any]] = {
    "shapes-8": {"num_videos": 480, "num_classes": 8},
    "shapes-16": {"num_videos": 960, "num_classes": 16},
    "shapes-tail": {"num_videos": 960, "num_classes": 16, "imbalance": 10.0},
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
SIZE = 40  # pixels of a clip; videos are kept a fourth larger


class Videos(NamedTuple):
    """A set in memory: N videos with what is known of them."""

    frames: Tensor  # (3, F, H, W) uint8, of all videos, one after the other
    lengths: Tensor  # (N,) frames of each
    labels: Tensor  # (N,)
    takes: Tensor  # (N,) videos of one number show the same thing
    people: Tensor  # (N,)
    splits: list[str]  # the official ones, or empty
    kind: str  # "generated" or "real", of which the example knows settings

    def ids(self, of: str) -> Tensor:
        """Number what counts as one video."""
        number: Tensor = torch.arange(len(self.labels)) if of == "videos" else getattr(self, of)
        return number


class Clips:
    """The frames of a set on a device, and which of them make a clip."""

    def __init__(
        self, videos: Videos, device: str | torch.device, *, num_frames: int, stride: int
    ) -> None:
        self.clip = {"num_frames": num_frames, "stride": stride}
        self.frames, self.lengths = videos.frames.to(device), videos.lengths.tolist()
        self.first = (videos.lengths.cumsum(0) - videos.lengths).tolist()  # frame of every video
        own = [clip_indices(torch.arange(n), n, **self.clip) for n in self.lengths]
        # Of the clip that starts at each frame, all frames: (F, num_frames).
        self.places = torch.cat([first + part for first, part in zip(self.first, own, strict=True)])

    def starts(self, video: int, choose: Callable[..., Tensor], **how: Any) -> Tensor:
        """Choose where clips of a video start, (V,), in the frames of the set."""
        return self.first[video] + choose(self.lengths[video], **self.clip, **how)

    def cut(self, starts: Tensor) -> Tensor:
        """Cut clips out, (len(starts), 3, num_frames, H, W)."""
        places = self.places[starts].to(self.frames.device, non_blocking=True)
        return self.frames[:, places].transpose(0, 1).contiguous()


def load_set(name: str, folder: Path, real: Path) -> Videos:
    """Give a generated set, or the one in ``real``, which are kept in ``folder``."""
    manifest, options = real / "manifest.csv", GENERATED.get(name)
    kind = "real" if options is None else "generated"
    key = zlib.crc32(repr((SIZE, kind, options or manifest.read_text())).encode())

    def make() -> Videos:
        if options is None:
            return load(manifest, kind)
        make_synthetic_videos(folder / name, **options)
        return load(folder / name / "manifest.csv", kind)

    return cached(folder / f"{name}-{key:08x}.pt", make)


def cached(file: Path, make: Callable[[], Videos]) -> Videos:
    """Make a set once for all processes: one does, the others wait and read its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            unfinished = file.with_suffix(".tmp")
            torch.save(make()._asdict(), unfinished)
            unfinished.replace(file)
    return Videos(**torch.load(file, weights_only=True, mmap=True))


def load(manifest: Path, kind: str) -> Videos:
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
    lengths = torch.tensor([video.shape[1] for video in frames])
    joined = torch.cat([crop(video[None])[0] for video in frames], dim=1)
    return Videos(joined, lengths, videos.labels, takes, people, list(videos.splits), kind)


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
