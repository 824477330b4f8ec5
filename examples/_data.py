"""The videos of a run, of a folder, a manifest or tar shards, from any step of an epoch on.

All ranks together read the same videos in the same order, however many ranks there are.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _resume import need, refusing, stay_alive
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from iivcl import augment
from iivcl.data import (
    ClipRecipe,
    Manifest,
    TarClips,
    VideoClips,
    collate_clips,
    find_videos,
    read_manifest,
)
from iivcl.distributed import rank, world_size


class Batches(Sampler[list[int]]):
    """The videos of every part of a step that this rank reads, from any step of an epoch on.

    All videos are put in an order that depends on (seed, epoch) alone. A step takes the next
    ``batch_size`` of them, whatever the number of ranks, and each rank its share of these. What is
    left at the end of an epoch is left out.
    """

    def __init__(self, num_videos: int, args: argparse.Namespace) -> None:
        self.num_videos, self.batch_size, self.seed = num_videos, args.batch_size, args.seed
        self.share = args.batch_size // world_size()  # videos of a rank
        self.part = self.share // args.accumulate  # videos of one forward pass
        self.epoch = self.step = 0

    def __len__(self) -> int:
        return (self.num_videos // self.batch_size - self.step) * (self.share // self.part)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        order = torch.randperm(self.num_videos, generator=generator)
        steps = order[: len(order) // self.batch_size * self.batch_size].view(-1, self.batch_size)
        for videos in steps[self.step :, rank() * self.share : (rank() + 1) * self.share]:
            yield from (part.tolist() for part in videos.split(self.part))


class Data:
    """The training set, as a loader that begins at any step of an epoch.

    Its videos, recipe and transform are those of pretraining where none are given.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        videos: Manifest | None = None,
        recipe: ClipRecipe | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.share, self.parts = args.batch_size // world_size(), args.accumulate
        part = self.share // self.parts
        need(args.data.exists(), f"--data {args.data} does not exist")
        listed = args.data.glob("*.tar") if args.data.is_dir() else [args.data]
        shards = sorted(path for path in listed if path.is_file())
        self.is_tar = videos is None and bool(shards) and shards[0].suffix == ".tar"
        recipe = recipe or ClipRecipe(
            num_frames=args.frames, stride=args.stride, clips_per_video=args.clips,
            short_side=args.size * 8 // 7,
        )  # fmt: skip
        if transform is None:  # colours are drawn on the device, crops here: files differ in size
            crop = augment.RandomResizedCrop(args.size, scale=tuple(args.crop))
            transform = augment.Compose(crop, augment.RandomHorizontalFlip())
        how: dict[str, Any] = {
            "transform": transform,
            "on_error": args.on_error,
            "seed": args.seed,
        }
        with refusing(ValueError):
            if self.is_tar:
                self.set: Any = TarClips(
                    shards, recipe, batch_size=part, describe=read_class, **how
                )
                self.files, self.labels = [shard.name for shard in shards], None
                self.num_videos = len(self.set) * world_size()
                batches: dict[str, Any] = {"batch_size": part, "drop_last": True}
            else:
                videos = videos or training_part(read_videos(args.data))
                self.set = VideoClips(videos, recipe, **how)
                root = args.data if args.data.is_dir() else args.data.parent
                self.files = [os.path.relpath(path, root) for path in videos.paths]
                self.labels, self.num_videos = videos.labels, len(self.files)
                self.batches = Batches(self.num_videos, args)
                batches = {"batch_sampler": self.batches}
        self.steps = self.num_videos // args.batch_size  # of an epoch
        need(
            self.steps > 0,
            f"{args.data} holds {self.num_videos} videos, and a step takes {args.batch_size}: "
            "give more videos, or a smaller --batch-size",
        )
        self.loader: DataLoader[Any] = DataLoader(
            self.set, **batches, num_workers=args.workers, persistent_workers=args.workers > 0,
            collate_fn=collate_clips, pin_memory=torch.cuda.is_available(),
            worker_init_fn=stay_alive, generator=torch.Generator(),  # not the global one, see Run
        )  # fmt: skip

    def steps_from(self, epoch: int, step: int) -> Iterator[tuple[list[Any], float]]:
        """Yield the parts of every step of an epoch, and the seconds that were waited for them."""
        if self.is_tar:
            self.set.set_epoch(epoch, start=step * self.share)
        else:
            self.set.set_epoch(epoch)
            self.batches.epoch, self.batches.step = epoch, step
        with self.set.name_crashes():
            batches = iter(self.loader)
            for _ in range(step, self.steps):
                begin = time.perf_counter()
                parts = list(itertools.islice(batches, self.parts))
                yield parts, time.perf_counter() - begin


def read_videos(data: Path) -> Manifest:
    """List the videos of a manifest, or of a folder, whose folders of files are the classes."""
    if not data.is_dir():
        return read_manifest(data)
    paths = find_videos(data)
    classes = sorted({os.path.dirname(path) for path in paths})
    place = {folder: number for number, folder in enumerate(classes)}
    labels = [place[os.path.dirname(path)] if len(classes) > 1 else -1 for path in paths]
    return Manifest(
        paths, torch.tensor(labels, dtype=torch.int64), torch.arange(len(paths)), classes
    )


def training_part(videos: Manifest) -> Manifest:
    """Take those to train on where splits are named: what is tested later stays unseen."""
    names = sorted(set(videos.splits) - {""})
    if names and "train" not in names:
        raise ValueError(f"the manifest must name a split 'train' to train on; got {names}")
    return videos.split("train") if names else videos


def read_class(files: dict[str, bytes]) -> int:
    """Read the number of the class that stands beside a video in a shard, -1 without one."""
    return int(files.get("cls", b"-1"))
