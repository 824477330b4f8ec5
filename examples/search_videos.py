"""Search a folder of videos with a trained encoder: index, nearest videos, near-duplicates.

    python examples/search_videos.py run/encoder.pt my_videos/ --query clip.mp4
    python examples/search_videos.py encoder.pt my_videos/ --stride 1 --size 32  # train_minimal.py

--out gets `index.npz`, one feature for every window that slides over a video; run again, only
files that are new or changed are read. `search.html` shows the videos nearest to the query and
those that are nearly the same, `duplicates.json` says the latter with their seconds, and
`manifest.jsonl` gives them one group, which `iivcl.data.VideoClips` takes.

Compared are features before the head, minus their mean over the videos. Windows that show next to
nothing, as a black intro, never count. Two videos are near-duplicates when half of one of them is
found in the other, and a group has none that are not: what joins others only by way of a third, as
a compilation does, is listed apart.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _search_page import Group, Match, Place, write_page
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm
from train_minimal import NUM_FRAMES, REAL, SmallEncoder

from iivcl import augment, backbones
from iivcl.data import DecodeError, clip_indices, find_videos, open_video

SHARE = 0.5  # of the windows of one video that must be found in the other
PLAIN = 6 / 255  # standard deviation over a frame below which it shows next to nothing
AT_ONCE = 8  # windows that are decoded and encoded together
SAVE_SECONDS = 60
PICTURES_PER_SECOND = 25  # of a folder of images, which does not tell
COLUMNS = ("features", "first", "seconds", "plain")


def main() -> None:
    args = parse_args()
    for stream in (sys.stdout, sys.stderr):  # names need not be in their encoding
        stream.reconfigure(errors="backslashreplace")
    try:
        paths = [os.path.abspath(path) for path in find_videos(args.folder)]
        need(bool(paths), f"there are no videos in {args.folder}")
        encoder, settings = load_encoder(args)
        asked = None if args.query is None else read_query(encoder, settings, args)
        args.out.mkdir(parents=True, exist_ok=True)
        index, skipped = update_index(encoder, settings, paths, args)
        need(bool(index), f"none of the {len(paths)} videos in {args.folder} can be read")
        bank = Bank(index)

        query, nearest = (None, []) if asked is None else search(args.query, asked, bank, args.top)
        groups, apart = find_duplicates(bank, args.threshold)
        write_duplicates(args, settings, index, groups, apart, skipped)
        page = args.out / "search.html"
        shown = settings["frames"], settings["stride"]
        write_whole(page, write_page(query, nearest, groups, apart, len(index), skipped, shown))
    except OSError as error:
        need(False, str(error))
    grouped = sum(len(group.durations) for group in groups)
    print(f"near-duplicates: {grouped} videos in {len(groups)} groups; apart: {len(apart)} pairs")
    print(f"page: {page}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="encoder.pt of pretrain.py, or weights")
    parser.add_argument("folder", type=Path, help="videos, at every depth")
    parser.add_argument("--query", type=Path, help="video to find the like of")
    parser.add_argument("--top", type=int, default=12, help="nearest videos that are shown")
    parser.add_argument("--out", type=Path, default=Path("search"), help="folder to write")
    parser.add_argument("--threshold", type=float, default=0.9, help="cosine of near-duplicates")
    parser.add_argument("--hop", type=float, help="seconds between windows; default: half a one")
    named = "of iivcl.backbones, `small` of train_minimal.py, or my_module:my_function"
    parser.add_argument("--backbone", help=f"where the file does not tell: {named}")
    for name, what in (("frames", "of a window"), ("stride", "frames"), ("size", "pixels")):
        parser.add_argument(f"--{name}", type=int, help=f"{what}; default: as in training")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    for name in ("top", "hop", "frames", "stride", "size"):
        value = getattr(args, name)
        need(value is None or value > 0, f"--{name} must be above 0; got {value}")
    need(-1 < args.threshold <= 1, f"--threshold must be in (-1, 1]; got {args.threshold}")
    need(args.workers >= 0, f"--workers must be at least 0; got {args.workers}")
    return args


def need(condition: bool, otherwise: str) -> None:
    """End with one line unless a condition holds."""
    if not condition:
        raise SystemExit("error: " + " ".join(otherwise.split()))


# The encoder


def load_encoder(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Build and load the encoder; and what decides about its features, which the index keeps."""
    about: dict[str, Any] = {}
    if args.checkpoint.suffix != ".safetensors":
        try:
            about = torch.load(args.checkpoint, "cpu", weights_only=True)
        except OSError:
            raise
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
            need(False, f"{args.checkpoint} is no checkpoint of tensors and plain values")
    about = about if isinstance(about, dict) else {}
    name = args.backbone or about.get("backbone", "small")
    module, _, function = name.rpartition(":")
    # A file must not choose what is imported.
    need(not module or args.backbone is not None,
         f"{args.checkpoint} is of an encoder of your own: give --backbone {name}")  # fmt: skip
    known = function == "small" or function in backbones.__all__ or module
    need(bool(known), f"--backbone {name} is not in iivcl.backbones")
    try:
        if module:
            sys.path.insert(0, os.getcwd())
            encoder = getattr(importlib.import_module(module), function)()
        else:
            encoder = SmallEncoder() if name == "small" else getattr(backbones, name)()
        backbones.load_weights(encoder, args.checkpoint)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        need(False, f"--backbone {name}: {error}")
    minimal = {"frames": NUM_FRAMES, "stride": REAL.stride, "size": REAL.size}
    clip = {n: getattr(args, n) or int(about.get(n, value)) for n, value in minimal.items()}
    digest = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    settings = {"checkpoint": digest, "backbone": name, **clip, "hop": args.hop}
    return encoder.to(args.device).eval(), settings


@torch.no_grad()
def encode(encoder: nn.Module, clips: Tensor, settings: dict[str, Any], device: str) -> Tensor:
    """Map windows (N, 3, T, H, W) uint8 to features (N, D) of unit length."""
    views = augment.evaluation(settings["size"])(clips.to(device))  # (N, 3, T, size, size)
    features = F.normalize(encoder(views).float(), dim=1).cpu()
    need(bool(features.isfinite().all()), "the encoder gives features that are not finite")
    return features


# The index: of every file its windows, kept while the file keeps its size and time


class Entry(NamedTuple):
    """What is known of one video of n windows."""

    stamp: list[int]  # size and time of the file
    duration: float  # seconds
    features: Tensor  # (n, D) of unit length
    first: Tensor  # (n,) int64 frames at which the windows begin
    seconds: Tensor  # (n, 2) float64, where they begin and end
    plain: Tensor  # (n,) bool, whether they show next to nothing


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
            for piece in torch.arange(len(first)).split(AT_ONCE):
                clips = video.read(indices[piece], short_side=round(size * 8 / 7))
                yield path, (clips, first[piece], seconds[piece])
            yield path, float(end[-1])


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


# Search


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


def read_query(encoder: nn.Module, settings: dict[str, Any], args: argparse.Namespace) -> Entry:
    need(args.query.exists(), f"--query: no such file: {args.query}")
    path = os.path.abspath(args.query)
    [(_, entry)] = read_entries(encoder, settings, [path], args)
    if isinstance(entry, str):
        need(False, f"--query: {args.query}: {entry}")
    need(not entry.plain.all(), f"--query: {args.query} shows nothing but plain frames")
    return entry


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


# Near-duplicates


def find_duplicates(bank: Bank, threshold: float) -> tuple[list[Group], list[Match]]:
    """Group the videos of which each has half of one in the other; and list pairs left apart."""
    pairs: dict[tuple[int, int], tuple[float, list[Match]]] = {}
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

    # Two groups become one when every video of the one is a near-duplicate of all of the other.
    members = {video: [video] for pair in pairs for video in pair}
    for a, b in sorted(pairs, key=lambda pair: -pairs[pair][0]):
        ours, theirs = members[a], members[b]
        between = [(min(x, y), max(x, y)) for x in ours for y in theirs]
        if ours is not theirs and all(pair in pairs for pair in between):
            ours += theirs
            for video in theirs:
                members[video] = ours
    together = {tuple(sorted(videos)) for videos in members.values() if len(videos) > 1}
    groups = []
    for videos in sorted(together):
        inside = [m for pair, (_, ms) in pairs.items() if set(pair) <= set(videos) for m in ms]
        groups.append(Group({bank.paths[v]: bank.durations[v] for v in videos}, inside))
    apart = [m for (a, b), (_, ms) in pairs.items() if members[a] is not members[b] for m in ms]
    return groups, apart


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


def write_duplicates(
    args: argparse.Namespace, settings: dict[str, Any], index: dict[str, Entry],
    groups: list[Group], apart: list[Match], skipped: dict[str, str],
) -> None:  # fmt: skip
    """Write the groups as JSON, and as the groups of a manifest of all videos."""

    def describe(match: Match) -> dict[str, Any]:
        a, b, similarity = match
        return {
            "a": a.path, "a_seconds": [a.start, a.end], "a_duration_seconds": a.duration,
            "b": b.path, "b_seconds": [b.start, b.end], "b_duration_seconds": b.duration,
            "similarity": similarity,
        }  # fmt: skip

    group_of = {path: f"video {place}" for place, path in enumerate(index)}
    for number, group in enumerate(groups):
        group_of |= dict.fromkeys(group.durations, f"group {number}")
    found = {
        "settings": {**settings, "threshold": args.threshold, "share": SHARE},
        "groups": [
            {
                "group": f"group {number}",
                "videos": [{"path": p, "duration_seconds": d} for p, d in group.durations.items()],
                "matches": [describe(match) for match in group.matches],
            }
            for number, group in enumerate(groups)
        ],
        "apart": [describe(match) for match in apart],
        "skipped": [{"path": path, "cause": cause} for path, cause in skipped.items()],
    }
    write_whole(args.out / "duplicates.json", json.dumps(found, indent=1) + "\n")
    rows = [json.dumps({"path": path, "group": group}) for path, group in group_of.items()]
    write_whole(args.out / "manifest.jsonl", "\n".join(rows) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name never stands on half of it."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
