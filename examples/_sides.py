"""The labelled videos that `evaluate.py` searches, and those that it searches for."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _data import read_videos
from _resume import need, refusing
from torch import Tensor

from iivcl import data

SETS = ("ucf101", "hmdb51", "kinetics", "ssv2", "diving48")


def add_set(add: Callable[..., None]) -> None:
    """Add the settings that choose the split of a published set."""
    add("--set", None, "official split of", choices=SETS)
    add("--lists", None, "folder of the lists of --set; default: DATA")
    add("--split", 1, "of UCF101 and HMDB51", type=int, choices=(1, 2, 3))
    add("--suffix", None, "of the files of --set that were encoded anew, such as .mp4")


def read_sides(
    args: argparse.Namespace, names: tuple[str, str] = ("the gallery", "the queries")
) -> tuple[data.Manifest, Tensor | None, dict[str, Any]]:
    """List the labelled videos, and which (N,) are queries; None to leave one out."""
    source = Path(args.data)
    need(source.exists(), f"no such file or folder: {source}")
    asked = {"--set": args.set, "--hold-out": args.hold_out, "--leave-one-out": args.leave_one_out}
    rules = [option for option, value in asked.items() if value not in (None, False)]
    need(len(rules) < 2, f"{' and '.join(rules)} exclude one another: give one of them")
    with refusing(ValueError, OSError):
        if args.set is not None:
            sides, rule = official(args), f"official split of {args.set}"
            rule += f", number {args.split}" if args.set in ("ucf101", "hmdb51") else ""
        else:
            listed = read_videos(source)
            if source.is_dir():
                folders = [os.path.relpath(folder, source) for folder in listed.classes]
                listed = listed._replace(classes=folders)
            if args.leave_one_out or (not listed.splits and args.hold_out is None):
                sides, rule = [listed], "leave one out"
            elif args.hold_out is not None:
                generator = torch.Generator().manual_seed(args.seed)
                sides = list(listed.hold_out(args.hold_out, generator=generator))
                rule = f"{args.hold_out} of the videos held out by groups, seed {args.seed}"
            else:
                sides = [listed.split(args.gallery), listed.split(args.query)]
                rule = f"column split: {args.query} in {args.gallery}"
    videos, is_query = join(sides)
    files = [{os.path.normpath(path) for path in side.paths} for side in sides]
    both = sorted(files[0] & files[1]) if len(sides) == 2 else []
    need(not both, f"{len(both)} files are in {names[0]} and in {names[1]}, such as "
         f"{''.join(both[:1])}: list each on one side")  # fmt: skip
    known = videos.labels >= 0
    classes = [videos.labels[known & (is_query == side)].unique() for side in (False, True)]
    if len(sides) == 2:
        for side, name in zip(classes, names, strict=True):
            need(len(side) > 0, f"{name}: no video has a label")
        lacking = classes[1][~torch.isin(classes[1], classes[0])].tolist()
        missing = ", ".join(videos.classes[c] if videos.classes else str(c) for c in lacking)
        need(not lacking, f"{names[1]} have classes that no video of {names[0]} has: {missing}")
    need(int(known.sum()) > 2, f"{source} has fewer than 3 videos with a label")
    rows = known.nonzero().flatten().tolist()
    videos = videos._replace(paths=[videos.paths[i] for i in rows], labels=videos.labels[known],
                             ids=videos.ids[known], splits=())  # fmt: skip
    is_query = is_query[known]
    root = source if source.is_dir() else source.parent
    lines = [
        f"{os.path.relpath(path, root)}\t{label}\t{query}\t{size_of(path)}"
        for path, label, query in zip(
            videos.paths, videos.labels.tolist(), is_query.tolist(), strict=True
        )
    ]
    text = "\n".join([*videos.classes, *lines]).encode(errors="surrogateescape")
    about = {
        "data": str(args.data), "split": rule, "videos": len(rows),
        "unlabelled": len(known) - len(rows), "sha256": hashlib.sha256(text).hexdigest(),
    }  # fmt: skip
    return videos, is_query if len(sides) == 2 else None, about


def official(args: argparse.Namespace) -> list[data.Manifest]:
    """Read the gallery and the queries of a published set."""
    root, lists = Path(args.data), Path(args.lists)
    how = {} if args.suffix is None else {"suffix": args.suffix}
    train_test = ("train", "test")
    if args.set == "ucf101":
        files = [lists / f"{part}list{args.split:02}.txt" for part in train_test]
        return [data.read_ucf101_split(file, root, **how) for file in files]
    if args.set == "hmdb51":
        read = partial(data.read_hmdb51_split, lists, root, split=args.split, **how)
        return [read(subset=part) for part in train_test]
    if args.set == "kinetics":  # of which some videos are lost everywhere
        read = partial(data.read_kinetics_split, missing="drop")
        folders = [root / p if (root / p).is_dir() else root for p in ("train", "val")]
        return [read(lists / "train.csv", folders[0]), read(lists / "val.csv", folders[1])]
    if args.set == "ssv2":  # as it was first published, or as it is now
        names = ("something-something-v2-{}.json", "{}.json")
        name = next((n for n in names if (lists / n.format("labels")).exists()), names[0])
        read = partial(data.read_ssv2_split, labels_file=lists / name.format("labels"), **how)
        return [read(lists / name.format(part), root) for part in ("train", "validation")]
    return [data.read_diving48_split(lists / f"Diving48_V2_{p}.json", root) for p in train_test]


def join(sides: list[data.Manifest]) -> tuple[data.Manifest, Tensor]:
    """Put both sides into one list, with classes of one name under one number."""
    classes = list(sides[0].classes)
    if any(side.classes != classes for side in sides):
        classes = sorted({name for side in sides for name in side.classes})
    labels = [
        torch.tensor([classes.index(name) for name in side.classes] + [-1])[side.labels]
        if classes else side.labels for side in sides
    ]  # fmt: skip
    paths = [path for side in sides for path in side.paths]
    is_query = torch.cat([torch.full((len(s.paths),), s is not sides[0]) for s in sides])
    # No id is in both sides: lists of their own count from 0, and parts of one list share none.
    later = 1 + max(sides[0].ids.tolist(), default=0)
    ids = torch.cat([s.ids + (s is not sides[0]) * later for s in sides])
    return data.Manifest(paths, torch.cat(labels), ids, classes), is_query


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1
