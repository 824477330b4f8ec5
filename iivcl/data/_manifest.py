"""Lists of videos with what is known about them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._container import StrPath
from ._pictures import IMAGE_SUFFIXES, natural_key

__all__ = ["MANIFEST_SUFFIXES", "Manifest", "find_videos", "make_manifest", "read_manifest"]

MANIFEST_SUFFIXES = (".csv", ".jsonl")
# fmt: off
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)
# fmt: on


class Manifest(NamedTuple):
    """A list of N videos.

    Attributes:
        paths: N files or folders of images.
        labels: (N,) int64 classes, -1 where unknown.
        ids: (N,) int64; videos of one id show the same thing and are never each other's
            neighbours or negatives. Videos without a group have an id of their own.
        classes: Name of every class, or empty where the source gives numbers only.
    """

    paths: list[str]
    labels: Tensor
    ids: Tensor
    classes: list[str]


def read_manifest(path: StrPath) -> Manifest:
    r"""Read a list of videos from CSV or JSON lines.

    CSV begins with a header; each JSON line is an object. The keys are ``path`` (relative ones
    start at the folder of the manifest), ``label`` (a number from 0, or the name of a class) and
    ``group`` (any text; videos of one group share an id). Only ``path`` is required, other keys
    are ignored. Class names are numbered in sorted order.

    Args:
        path: File whose name ends in ``.csv`` or ``.jsonl``.

    Returns:
        The list. Whether the videos exist is seen when they are read.

    Raises:
        FileNotFoundError: The manifest does not exist.
        ValueError: A line is wrong; the message gives its number.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "train.csv"
        >>> _ = file.write_text("path,label,group\n/a.mp4,run,g1\n/b.mp4,jump,g1\n")
        >>> manifest = read_manifest(file)
        >>> manifest.paths, manifest.classes
        (['/a.mp4', '/b.mp4'], ['jump', 'run'])
        >>> manifest.labels, manifest.ids
        (tensor([1, 0]), tensor([0, 0]))
    """
    file = Path(path)
    if file.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ValueError(f"`path` must end in .csv or .jsonl; got {os.fspath(path)!r}")
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _json_rows(file)
    paths: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    for number, row in rows:
        where = f"{file}, line {number}"
        video = row.get("path") if isinstance(row, dict) else None
        if not isinstance(video, str) or not video.strip():
            raise ValueError(f"{where}: a video needs a `path`; got {row!r}")
        paths.append(os.path.join(file.parent, video.strip()))
        labels.append(_text(row, "label", where))
        groups.append(_text(row, "group", where))
    if not paths:
        raise ValueError(f"{file}: lists no videos")
    return make_manifest(paths, labels, groups)


def make_manifest(
    paths: Sequence[StrPath],
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Manifest:
    """Number the labels and groups, each of N texts, empty where there is none.

    Labels that are all whole numbers stay what they are; others are names, numbered by their
    place in ``classes`` or, without it, in sorted order.
    """
    none = [""] * len(paths)
    labels, groups = labels or none, groups or none
    if classes is None:
        numbered = all(label == "" or label.isdecimal() for label in labels)
        classes = [] if numbered else sorted(set(labels) - {""})
    class_of = {name: number for number, name in enumerate(classes)}
    id_of: dict[tuple[str, int], int] = {}
    ids = [
        id_of.setdefault((group, -1 if group else place), len(id_of))
        for place, group in enumerate(groups)
    ]
    return Manifest(
        paths=[os.fspath(path) for path in paths],
        labels=torch.tensor(
            [class_of[x] if x in class_of else int(x or -1) for x in labels], dtype=torch.int64
        ),
        ids=torch.tensor(ids, dtype=torch.int64),
        classes=list(classes),
    )


def find_videos(root: StrPath) -> list[str]:
    """Find the videos of a folder at every depth: files by their suffix, and folders of images.

    A folder counts as a video when it holds images and neither video files nor folders. Names
    that begin with a dot are passed over.

    Args:
        root: Folder to search.

    Returns:
        Paths in natural order: ``2.mp4`` before ``10.mp4``; none when there are no videos.

    Raises:
        FileNotFoundError: The folder does not exist.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import find_videos
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> (root / "10.mp4").touch(), (root / "2.avi").touch(), (root / "notes.txt").touch()
        (None, None, None)
        >>> [pathlib.Path(path).name for path in find_videos(root)]
        ['2.avi', '10.mp4']
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"`root`: no such folder: {os.fspath(root)}")
    found: list[str] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names = [name for name in names if not name.startswith(".")]
        videos = [name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        found += [os.path.join(folder, name) for name in videos]
        if not videos and not subfolders and any(n.lower().endswith(IMAGE_SUFFIXES) for n in names):
            found.append(folder)
    return sorted(found, key=natural_key)


def _csv_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True)
        if "path" not in (reader.fieldnames or []):
            raise ValueError(
                f"{file}, line 1: the header must name a column `path`; got {reader.fieldnames}"
            )
        for row in reader:
            yield reader.line_num, row


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: not JSON: {error}") from error


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None or value == -1:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{where}: `{key}` must be text or a whole number; got {value!r}")
    return str(value).strip()
