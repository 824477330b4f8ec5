"""The index of `search_videos.py`: a feature for every window that slides over a video.

Read top to bottom: what is known of a video (`Entry`), how its windows are cut (`Windows`), read
(`read_pieces`) and encoded (`read_entries`), and the file that keeps the entries while size and
time of a video stay (`update_index`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from iivcl import augment
from iivcl.data import DecodeError, Video, clip_indices, open_video

PLAIN = 6 / 255  # standard deviation over a frame below which it shows next to nothing
AT_ONCE = 8  # windows that are decoded and encoded together
SAVE_SECONDS = 60
PICTURES_PER_SECOND = 25  # of a folder of images, which does not tell
COLUMNS = ("features", "first", "seconds", "plain")  # of an entry, a row for every window


class Entry(NamedTuple):
    """What is known of one video of n windows."""

    stamp: list[int]  # size and time of the file
    duration: float  # seconds
    features: Tensor  # (n, D) of unit length
    first: Tensor  # (n,) int64 frames at which the windows begin
    seconds: Tensor  # (n, 2) float64, where they begin and end
    plain: Tensor  # (n,) bool, whether they show next to nothing


def need(condition: bool, otherwise: str) -> None:
    """End with one line unless a condition holds."""
    if not condition:
        raise SystemExit("error: " + " ".join(otherwise.split()))


class Windows(IterableDataset):
    """The windows of many videos in pieces, so that no long one is held whole."""

    def __init__(self, paths: list[str], settings: dict[str, Any]) -> None:
        self.paths, self.settings = paths, settings

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        worker = get_worker_info()
        for path in self.paths[worker.id :: worker.num_workers] if worker else self.paths:
            try:
                yield from self.read(path)
            except (DecodeError, OSError) as error:
                yield path, str(error).removeprefix(f"{path}: ")

    def read(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield clips and what is known of them, and at the end the duration."""
        frames, stride, hop, size = (self.settings[n] for n in ("frames", "stride", "hop", "size"))
        span = (frames - 1) * stride + 1
        with open_video(path) as video:
            times, count = video.times, video.num_frames
            fps = video.fps if video.fps > 0 else PICTURES_PER_SECOND
            if times.isnan().any():
                times = torch.arange(count) / fps
            step = max(1, round(hop * fps)) if hop else max(1, span // 2)
            last = max(0, count - span)
            first = torch.tensor([*range(0, last, step), last])  # the end is seen as well
            indices = clip_indices(first, count, num_frames=frames, stride=stride)  # (n, T)
            end = times[(first + span - 1).clamp(max=count - 1)] + 1 / fps
            seconds = torch.stack([times[first], end], 1)  # (n, 2)
            pieces = read_pieces(video, indices, short_side=round(size * 8 / 7))
            rows = zip(pieces, first.split(AT_ONCE), seconds.split(AT_ONCE), strict=True)
            yield from ((path, row) for row in rows)
            yield path, float(end[-1])


def read_pieces(video: Video, indices: Tensor, *, short_side: int) -> Iterator[Tensor]:
    """Yield the clips (AT_ONCE, 3, T, H, W) of windows (n, T) that overlap, in order.

    Each frame is read once, in order: some files can be decoded in no other.
    """
    ahead = indices.unique()
    held: dict[int, Tensor] = {}  # frames (3, H, W) by their numbers
    for wanted in indices.split(AT_ONCE):
        is_next = ahead <= wanted.max()
        held = {number: frame for number, frame in held.items() if number >= wanted.min()}
        if is_next.any():
            [frames] = video.read(ahead[None, is_next], short_side=short_side)  # (3, F, H, W)
            held |= zip(ahead[is_next].tolist(), frames.unbind(1), strict=True)
        ahead = ahead[~is_next]
        if len({frame.shape for frame in held.values()}) == 1:
            clips = [torch.stack([held[n] for n in window], 1) for window in wanted.tolist()]
            yield torch.stack(clips)
        else:  # the size changes on the way
            yield video.read(wanted, short_side=short_side)


@torch.no_grad()
def encode(encoder: nn.Module, clips: Tensor, settings: dict[str, Any], device: str) -> Tensor:
    """Map windows (N, 3, T, H, W) uint8 to features (N, D) of unit length."""
    views = augment.evaluation(settings["size"])(clips.to(device))  # (N, 3, T, size, size)
    features = F.normalize(encoder(views).float(), dim=1).cpu()
    need(bool(features.isfinite().all()), "the encoder gives features that are not finite")
    return features


def read_entries(
    encoder: nn.Module, settings: dict[str, Any], paths: list[str], args: argparse.Namespace
) -> Iterator[tuple[str, Entry | str]]:
    """Yield the entry of every video, or why it cannot be read."""
    workers = min(args.workers, len(paths) - 1)  # one video is read in this process
    stamps = {path: stamp(path) for path in paths}  # before reading: a change is then seen later
    loader = DataLoader(Windows(paths, settings), batch_size=None, num_workers=max(0, workers))
    pieces: dict[str, list[tuple[Tensor, ...]]] = {}
    for path, found in loader:
        if isinstance(found, str):
            pieces.pop(path, None)
            yield path, found
        elif isinstance(found, float):
            columns = map(torch.cat, zip(*pieces.pop(path), strict=True))
            yield path, Entry(stamps[path], found, *columns)
        else:
            clips, first, seconds = found
            plain = (clips.float().std(dim=(3, 4)) < 255 * PLAIN).flatten(1).all(1)  # (n,)
            features = encode(encoder, clips, settings, args.device)
            pieces.setdefault(path, []).append((features, first, seconds, plain))


def stamp(path: str) -> list[int]:
    """Give size and time of a file; of a folder of images, of all of them."""
    files = [entry.stat() for entry in os.scandir(path)] if os.path.isdir(path) else [os.stat(path)]
    return [sum(file.st_size for file in files), max((f.st_mtime_ns for f in files), default=0)]


def update_index(
    encoder: nn.Module, settings: dict[str, Any], paths: list[str], args: argparse.Namespace
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read what is new or changed, forget what is gone; return the index and what was skipped."""
    file = args.out / "index.npz"
    kept = load_index(file, settings) if file.exists() else {}
    missing = {path for path in paths if not os.path.exists(path)}  # links to nowhere
    kept = {path: kept[path] for path in paths if path in kept and path not in missing
            and kept[path].stamp == stamp(path)}  # fmt: skip
    todo = [path for path in paths if path not in kept and path not in missing]
    index, skipped = dict(kept), dict.fromkeys(missing, "the link leads nowhere")
    saved = time.monotonic()
    entries = read_entries(encoder, settings, todo, args) if todo else iter(())
    for path, entry in tqdm(entries, "index", len(todo), unit="video"):
        if isinstance(entry, str):
            skipped[path] = entry
            continue
        index[path] = entry
        if time.monotonic() - saved > SAVE_SECONDS:
            save_index(file, settings, index)
            saved = time.monotonic()
    index = {path: index[path] for path in paths if path in index}
    save_index(file, settings, index)
    print(f"index: {len(index)} videos, {len(index) - len(kept)} read now; skipped: {len(skipped)}")
    for path, cause in skipped.items():
        print(f"skipped: {path}: {' '.join(cause.split())}")
    return index, skipped


def save_index(file: Path, settings: dict[str, Any], index: dict[str, Entry]) -> None:
    entries = list(index.values())
    videos = [
        {"path": path, "stamp": e.stamp, "duration": e.duration, "windows": len(e.first)}
        for path, e in index.items()
    ]
    about = np.array(json.dumps({"settings": settings, "videos": videos}))
    columns = {
        name: torch.cat([getattr(entry, name) for entry in entries]).numpy()
        for name in (COLUMNS if entries else ())
    }
    unfinished = file.with_name(file.name + ".tmp")
    with open(unfinished, "wb") as stream:
        np.savez(stream, about=about, **columns)
    os.replace(unfinished, file)


def load_index(file: Path, settings: dict[str, Any]) -> dict[str, Entry]:
    """Read the entries; none when they are of another encoder or other windows."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            about = json.loads(str(content["about"]))
            if about["settings"] != settings:
                print(f"{file} is of another encoder or other windows and is made anew")
                return {}
            counts = [video["windows"] for video in about["videos"]]
            columns = [torch.from_numpy(content[name]).split(counts) for name in COLUMNS if counts]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{file} cannot be read and is made anew: {error}")
        return {}
    rows = zip(about["videos"], *columns, strict=True) if columns else ()
    return {v["path"]: Entry(v["stamp"], v["duration"], *values) for v, *values in rows}
