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

This file is the settings, the encoder and the results; `_search_index.py` reads the videos,
`_search_groups.py` compares them, `_search_page.py` draws the page. Copy all with it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from _search_groups import SHARE, Bank, Group, Match, find_duplicates, search
from _search_index import Entry, need, read_entries, update_index
from _search_page import write_page
from torch import nn
from train_minimal import NUM_FRAMES, REAL, SmallEncoder

from iivcl import backbones
from iivcl.data import find_videos


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


def read_query(encoder: nn.Module, settings: dict[str, Any], args: argparse.Namespace) -> Entry:
    need(args.query.exists(), f"--query: no such file: {args.query}")
    path = os.path.abspath(args.query)
    [(_, entry)] = read_entries(encoder, settings, [path], args)
    if isinstance(entry, str):
        need(False, f"--query: {args.query}: {entry}")
    need(not entry.plain.all(), f"--query: {args.query} shows nothing but plain frames")
    return entry


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
