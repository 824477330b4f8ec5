"""What `search_videos.py` finds: the videos nearest to a query, and groups of near-duplicates.

Compared are features minus their mean over the videos. A group has no two videos that are not
near-duplicates of each other: what joins others only by way of a third is left apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _search_index import COLUMNS, Entry
from torch import Tensor

SHARE = 0.5  # of the windows of one video that must be found in the other


class Place(NamedTuple):
    """A stretch of a video."""

    path: str
    duration: float  # seconds, of the whole video
    first: int  # frame
    start: float  # seconds
    end: float


class Match(NamedTuple):
    """Two stretches that are alike."""

    a: Place
    b: Place
    similarity: float  # cosine


class Group(NamedTuple):
    """Videos of which every two are near-duplicates."""

    durations: dict[str, float]  # of every path, in seconds
    matches: list[Match]


class Bank:
    """The windows of all videos that show something, minus their mean."""

    def __init__(self, index: dict[str, Entry]) -> None:
        self.paths = list(index)
        self.durations = [entry.duration for entry in index.values()]
        entries = index.values()
        features, first, seconds, plain = (
            torch.cat([getattr(entry, name) for entry in entries]) for name in COLUMNS
        )
        videos = torch.arange(len(index)).repeat_interleave(
            torch.tensor([len(entry.first) for entry in entries])
        )
        seen = ~plain
        self.video, self.first, self.seconds = videos[seen], first[seen], seconds[seen]
        # A long video counts as much as a short one.
        sums = torch.zeros(len(index), features.shape[1]).index_add_(0, self.video, features[seen])
        counts = self.video.bincount(minlength=len(index))
        means = sums[counts > 0] / counts[counts > 0, None]
        self.mean = means.mean(0) if len(means) > 1 else torch.zeros(features.shape[1])
        self.rows = self.center(features[seen])  # (N, D)

    def center(self, features: Tensor) -> Tensor:
        """Take the mean off features (n, D) of unit length."""
        return F.normalize(features - self.mean, dim=1)

    def best_in_each(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the largest cosine (n, V) of queries (n, D) in every video, and its row."""
        cosine = queries @ self.rows.T  # (n, N)
        shape = len(queries), len(self.paths)
        best = torch.full(shape, -2.0)
        best.scatter_reduce_(1, self.video.expand_as(cosine), cosine, "amax")
        row = torch.zeros(shape, dtype=torch.int64)
        is_best = cosine == best.gather(1, self.video.expand_as(cosine))
        window, found = is_best.nonzero(as_tuple=True)
        row[window, self.video[found]] = found
        return best, row

    def place(self, row: Tensor) -> Place:
        """Say where a row is."""
        start, end = self.seconds[row].tolist()
        video = int(self.video[row])
        return Place(self.paths[video], self.durations[video], int(self.first[row]), start, end)


def search(query: Path, entry: Entry, bank: Bank, top: int) -> tuple[Place, list[Match]]:
    """Find the nearest window of every video to any window of the query; the best videos first."""
    rows = (~entry.plain).nonzero()[:, 0]
    best, found = bank.best_in_each(bank.center(entry.features[rows]))  # (n, V)
    similarity, window = best.max(0)  # (V,)

    def place(row: int) -> Place:
        start, end = entry.seconds[row].tolist()
        return Place(os.path.abspath(query), entry.duration, int(entry.first[row]), start, end)

    matches = []
    for video in similarity.argsort(descending=True).tolist():
        is_itself = os.path.realpath(bank.paths[video]) == os.path.realpath(query)
        if not is_itself and similarity[video] >= -1.5:  # a plain video has no window
            there = bank.place(found[window[video], video])
            matches.append(Match(place(int(rows[window[video]])), there, float(similarity[video])))
    return place(int(rows[0])), matches[:top]


Pairs = dict[tuple[int, int], tuple[float, list[Match]]]  # the share of one in the other, where


def find_duplicates(bank: Bank, threshold: float) -> tuple[list[Group], list[Match]]:
    """Group the videos of which each has half of one in the other; and list pairs left apart."""
    pairs = alike(bank, threshold)
    members = grouped(pairs)
    together = {tuple(sorted(videos)) for videos in members.values() if len(videos) > 1}
    groups = []
    for videos in sorted(together):
        inside = [m for pair, (_, ms) in pairs.items() if set(pair) <= set(videos) for m in ms]
        groups.append(Group({bank.paths[v]: bank.durations[v] for v in videos}, inside))
    apart = [m for (a, b), (_, ms) in pairs.items() if members[a] is not members[b] for m in ms]
    return groups, apart


def alike(bank: Bank, threshold: float) -> Pairs:
    """Find the pairs of videos of which half of one is in the other."""
    pairs: Pairs = {}
    for video in range(len(bank.paths)):
        rows = (bank.video == video).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        parts = [bank.best_in_each(part) for part in bank.rows[rows].split(256)]
        best, found = (torch.cat(column) for column in zip(*parts, strict=True))  # (n, V)
        share = (best >= threshold).float().mean(0)  # (V,)
        for other in (share >= SHARE).nonzero()[:, 0].tolist():
            pair = min(video, other), max(video, other)
            if video == other or (pair in pairs and pairs[pair][0] >= share[other]):
                continue
            near = (best[:, other] >= threshold).nonzero()[:, 0].tolist()
            matches = [
                Match(bank.place(rows[i]), bank.place(found[i, other]), float(best[i, other]))
                for i in near
            ]
            pairs[pair] = float(share[other]), join(matches)
    return pairs


def grouped(pairs: Pairs) -> dict[int, list[int]]:
    """Give for every video of a pair its group, in which every two are a pair; the surest first."""
    members = {video: [video] for pair in pairs for video in pair}
    for a, b in sorted(pairs, key=lambda pair: -pairs[pair][0]):
        ours, theirs = members[a], members[b]
        between = [(min(x, y), max(x, y)) for x in ours for y in theirs]
        if ours is not theirs and all(pair in pairs for pair in between):
            ours += theirs
            for video in theirs:
                members[video] = ours
    return members


def join(matches: list[Match]) -> list[Match]:
    """Join windows of two videos that overlap in both to one stretch, as similar as their best."""
    joined: list[Match] = []
    for match in matches:
        here, there, similarity = match
        if joined:
            a, b, best = joined[-1]
            if here.start <= a.end and b.start <= there.start <= b.end:
                a, b = a._replace(end=here.end), b._replace(end=max(b.end, there.end))
                joined[-1] = Match(a, b, max(best, similarity))
                continue
        joined.append(match)
    return joined
