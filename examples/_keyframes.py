"""Clips around keyframes with boxes of persons, for `finetune_detection.py`."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _resume import need, refusing, stay_alive
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iivcl import data
from iivcl.distributed import rank, world_size

Clip = tuple[Tensor, Tensor, Tensor, Tensor]  # see Keyframes


class Keyframes(Dataset[Clip]):
    """The keyframes of a list of boxes, each as a clip around it.

    Gives a clip (3, T, H, W) uint8, its boxes (n, 4) in pixels of it, what the persons do (n, A)
    bool, and the rows (n,) of the list. To train on, clips are cut at random and some are mirrored,
    by draws that depend on the seed, the epoch and the keyframe alone.
    """

    def __init__(self, boxes: data.ActionBoxes, args: argparse.Namespace, *, train: bool) -> None:
        self.boxes, self.args, self.train, self.epoch = boxes, args, train, 0
        self.rows: dict[tuple[str, float], list[int]] = {}
        for row, keyframe in enumerate(boxes.keyframes):
            self.rows.setdefault(keyframe, []).append(row)
        self.keyframes = sorted(self.rows)
        named = {video for video, _ in self.keyframes}
        with refusing(OSError):
            paths = [p for p in data.find_videos(args.videos) if Path(p).stem in named]
        self.paths = {Path(path).stem: path for path in paths}
        gone = sorted(named - self.paths.keys())
        need(not gone, f"{args.videos} lacks {len(gone)} videos of the lists, as {gone[:1]}")
        need(len(paths) == len(named), f"{args.videos} has several videos of one name of the lists")

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, index: int) -> Clip:
        video, second = self.keyframes[index]
        [seed] = np.random.SeedSequence([self.args.seed, self.epoch, index]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed))
        low, high = self.args.zoom
        drawn = torch.randint(low, high + 1, (), generator=generator)
        short_side = int(drawn) if self.train else self.args.test_size
        with data.open_video(self.paths[video], keep_index="file") as opened:
            frames = frames_around(opened, second - self.args.begin, self.args)
            clip = opened.read(frames[None], short_side=short_side)[0]  # (3, T, H, W)
        rows = torch.tensor(self.rows[video, second])
        height, width = clip.shape[-2:]
        boxes = self.boxes.boxes[rows].float() * torch.tensor([width, height, width, height])
        if self.train:
            clip, boxes, left = crop_and_flip(clip, boxes, self.args.size, generator)
            boxes, rows = boxes[left], rows[left]
        return clip, boxes, self.boxes.actions[rows], rows


def frames_around(video: data.Video, second: float, args: argparse.Namespace) -> Tensor:
    """Choose T frames of which the keyframe is number T // 2; beyond the video its ends repeat."""
    times, fps = video.times, video.fps
    if math.isnan(fps):  # a folder of images
        fps = args.rate or math.nan
        times = torch.arange(video.num_frames) / fps
    if not 0 <= second < times[-1] + 1 / fps:
        raise data.DecodeError(
            f"{video.name}: no frame at {second:g} s, for the last is at {float(times[-1]):g} s; "
            "files begin at second --begin, and images come --rate a second"
        )
    steps = torch.arange(args.frames, dtype=torch.float64) - args.frames // 2
    wanted = second + steps * args.stride / (args.rate or fps)  # (T,) seconds
    return torch.bucketize(wanted, (times[1:] + times[:-1]) / 2)  # the nearest frames


def crop_and_flip(
    clip: Tensor, boxes: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a square of a clip (3, T, H, W) and mirror it or not, and its boxes (n, 4) with it.

    Also tells which boxes (n,) have a pixel or more left; they end where the square ends.
    """
    height, width = clip.shape[-2:]
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    clip = clip[..., top : top + size, left : left + size]
    boxes = (boxes - torch.tensor([left, top, left, top])).clamp(0, size)
    if torch.rand((), generator=generator) < 0.5:
        clip = clip.flip(-1)
        boxes = torch.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    return clip, boxes, (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)


def collate(clips: Sequence[Clip]) -> Clip:
    """Stack B clips (B, 3, T, H, W), and join their boxes (N, 5), with the clip's number first."""
    views, boxes, actions, rows = zip(*clips, strict=True)
    numbered = [F.pad(of_clip, (1, 0), value=number) for number, of_clip in enumerate(boxes)]
    return torch.stack(views), torch.cat(numbered), torch.cat(actions), torch.cat(rows)


def batches_of_videos(keyframes: Keyframes, batch_size: int) -> list[list[int]]:
    """Part the keyframes into batches of one video, whose frames have one size; of this rank."""
    found = []
    for _, group in itertools.groupby(range(len(keyframes)), lambda i: keyframes.keyframes[i][0]):
        numbers = list(group)
        found += [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    return found[rank() :: world_size()]


def open_loader(keyframes: Keyframes, batches: Iterable[list[int]]) -> DataLoader[Any]:
    return DataLoader(
        keyframes, batch_sampler=batches, num_workers=keyframes.args.workers, collate_fn=collate,
        worker_init_fn=stay_alive, pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )  # fmt: skip
