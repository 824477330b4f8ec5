"""Lists of videos with what is known about them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iivcl._checks import check_choice, check_number, check_shape
from iivcl.data._container import StrPath
from iivcl.data._find_videos import find_videos
from iivcl.data._pictures import natural_key
from iivcl.data._tables import check_keys, csv_rows, numbered_lines, parse_json

__all__ = ["MANIFEST_SUFFIXES", "Manifest", "Row", "as_manifest", "make_manifest", "read_manifest"]

MANIFEST_SUFFIXES = (".csv", ".jsonl")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan", re.IGNORECASE)


class Row(NamedTuple):
    """One video of a list, in text; what is empty is not known."""

    path: StrPath
    label: str = ""
    group: str = ""
    split: str = ""


class Manifest(NamedTuple):
    """A list of N videos.

    Attributes:
        paths: N files or folders of images.
        labels: (N,) int64 classes, -1 where unknown.
        ids: (N,) int64; videos of one id show the same thing and are never each other's
            neighbours or negatives. Videos without a group have an id of their own.
        classes: Name of every class, or empty where the source gives numbers only.
        splits: Which part of the set each video belongs to, such as ``"train"``, empty where it
            is not said; no entries at all where the source has no such column.

    Example:
        >>> from iivcl.data import Manifest
        >>> labels, ids = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1])
        >>> manifest = Manifest(["a.mp4", "b.mp4", "c.mp4"], labels, ids, ["run", "jump"])
        >>> train, test = manifest.hold_out(0.4, generator=torch.Generator().manual_seed(0))
        >>> train.paths, test.paths
        (['b.mp4', 'c.mp4'], ['a.mp4'])
    """

    paths: list[str]
    labels: Tensor
    ids: Tensor
    classes: list[str]
    splits: Sequence[str] = ()

    def split(self, name: str) -> Manifest:
        r"""Return the videos of one split, with the labels, classes and ids that they have here.

        Args:
            name: One of ``splits``.

        Raises:
            ValueError: There is no such split, or one of its videos shares an id with a video of
                another split, so that what is learned of the one would be known of the other.

        Example:
            >>> import pathlib, tempfile
            >>> from iivcl.data import read_manifest
            >>> file = pathlib.Path(tempfile.mkdtemp()) / "set.csv"
            >>> _ = file.write_text("path,split\n/a.mp4,train\n/b.mp4,test\n/c.mp4,train\n")
            >>> read_manifest(file).split("train").paths
            ['/a.mp4', '/c.mp4']
        """
        _check(self)
        if not self.splits:
            raise ValueError("the manifest names no splits; `hold_out` parts it at random")
        check_choice("name", name, tuple(sorted(set(self.splits) - {""})))
        mask = torch.tensor([split == name for split in self.splits], device="cpu")
        inside = set(self.ids[mask].tolist())
        for path, group, split in zip(self.paths, self.ids.tolist(), self.splits, strict=True):
            if group in inside and split not in (name, ""):
                raise ValueError(
                    f"{path} is of split {split!r}, and its group of split {name!r} as well; "
                    "put each group into one split"
                )
        return _subset(self, mask)

    def hold_out(
        self, share: float, *, generator: torch.Generator | None = None
    ) -> tuple[Manifest, Manifest]:
        """Part the videos at random into those to train on and those to test; no id is in both.

        A random part of single videos would measure memory wherever several show the same thing.

        Args:
            share: How much of the videos is held out, in (0, 1), as nearly as whole ids allow.
            generator: Source of randomness.

        Returns:
            The videos to train on and those held out.

        Raises:
            ValueError: ``share`` is out of range, or all videos have one id.

        Example:
            See `Manifest`.
        """
        _check(self)
        check_number("share", share)
        if not 0 < share < 1:
            raise ValueError(f"`share` must be in (0, 1); got {share}")
        _, group, size = torch.unique(self.ids, return_inverse=True, return_counts=True)
        if len(size) < 2:
            raise ValueError(f"at least 2 ids are needed to hold some out; got {len(size)}")
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(len(size), generator=generator, device=device).to(size.device)
        held = torch.zeros_like(size, dtype=torch.bool)
        held[order] = size[order].cumsum(0) - size[order] / 2 < share * len(group)
        held[order[0]], held[order[-1]] = True, False  # neither part is ever empty
        return _subset(self, ~held[group]), _subset(self, held[group])


def read_manifest(path: StrPath) -> Manifest:
    r"""Read a list of videos from CSV or JSON lines.

    CSV begins with a header; each JSON line is an object; both are in UTF-8. The keys are ``path``
    (relative ones start at the folder of the manifest), ``label``, ``group`` (any text; videos of
    one group share an id) and ``split`` (any text). Only ``path`` is required, other keys are
    ignored; what is empty or -1 is unknown.

    Labels that are all whole numbers from 0 stay what they are. Otherwise they are names of
    classes, numbered in natural order: ``walk 2`` before ``walk 10``.

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
    rows: Iterable[tuple[str, Any]] = (
        csv_rows(file, "path", optional=Row._fields)
        if file.suffix.lower() == ".csv"
        else ((where, parse_json(where, line)) for where, line in numbered_lines(file))
    )
    found = []
    for where, row in rows:
        video = row.get("path") if isinstance(row, dict) else None
        if not isinstance(video, str) or not video.strip():
            raise ValueError(f"{where}: a video needs a `path`; got {row!r}")
        check_keys(where, row, Row._fields)
        columns = [_text(row, key, where) for key in Row._fields[1:]]
        found.append(Row(os.path.join(file.parent, video), *columns))
    if not found:
        raise ValueError(f"{file}: lists no videos")
    return make_manifest(found)


def make_manifest(rows: Iterable[Row], classes: Sequence[str] | None = None) -> Manifest:
    """Number the labels and groups of a table.

    Labels that are all numbers stay what they are; others are names, numbered by their place in
    ``classes`` or, without it, in natural order.
    """
    rows = list(rows)
    known = {row.label for row in rows} - {""}
    if classes is None:
        numbered = all(_NUMBER.fullmatch(label) for label in known)
        classes = [] if numbered else sorted(known, key=natural_key)
    number_of = {name: number for number, name in enumerate(classes)}
    number_of = (number_of or {label: int(Decimal(label)) for label in known}) | {"": -1}
    id_of: dict[str | int, int] = {}  # of every group, and of every row that has none
    ids = [id_of.setdefault(row.group or place, len(id_of)) for place, row in enumerate(rows)]
    return Manifest(
        paths=[os.fspath(row.path) for row in rows],
        labels=torch.tensor(
            [number_of[row.label] for row in rows], dtype=torch.int64, device="cpu"
        ),
        ids=torch.tensor(ids, dtype=torch.int64, device="cpu"),
        classes=list(classes),
        splits=[row.split for row in rows] if any(row.split for row in rows) else (),
    )


def as_manifest(videos: StrPath | Sequence[StrPath] | Manifest) -> tuple[Manifest, bool]:
    """Return the list of videos, and whether the user gave labels and ids with it."""
    where = ""
    if isinstance(videos, (str, os.PathLike)):
        where = f" in {os.fspath(videos)}"
        if not os.path.exists(videos):
            raise FileNotFoundError(f"`videos`: no such file or folder: {os.fspath(videos)}")
        if os.path.isdir(videos):
            videos = find_videos(videos)
        else:
            listed = os.fspath(videos).lower().endswith(MANIFEST_SUFFIXES)
            videos = read_manifest(videos) if listed else [videos]
    if isinstance(videos, Manifest):
        manifest = videos
    else:
        paths = list(videos) if isinstance(videos, Iterable) else [videos]
        for path in paths:
            if not isinstance(path, (str, os.PathLike)):
                raise TypeError(f"`videos` must be paths or a Manifest; got {type(path).__name__}")
        manifest = make_manifest(map(Row, paths))
    if not manifest.paths:
        raise ValueError(f"`videos`: there are no videos{where}")
    _check(manifest)
    return manifest, manifest is videos


def _check(manifest: Manifest) -> None:
    """Check that what is said of the videos is said of each."""
    count = len(manifest.paths)
    for name in ("labels", "ids"):
        numbers = getattr(manifest, name)
        check_shape(name, numbers, "N", N=(count, "paths"))
        if numbers.dtype != torch.int64:
            raise TypeError(f"`{name}` must be int64; got {numbers.dtype}")
    if len(manifest.splits) not in (0, count):
        raise ValueError(
            f"`splits` must have an entry for each of the {count} `paths`, or none; "
            f"got {len(manifest.splits)}"
        )


def _subset(manifest: Manifest, mask: Tensor) -> Manifest:
    rows = mask.nonzero().flatten().tolist()
    return manifest._replace(
        paths=[manifest.paths[row] for row in rows],
        labels=manifest.labels[mask],
        ids=manifest.ids[mask],
        splits=[manifest.splits[row] for row in rows] if manifest.splits else (),
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    """Return one entry of a row as text, the same for CSV and JSON, empty where it is unknown."""
    value = "" if row.get(key) is None else row[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{where}: `{key}` must be text or a whole number; got {value!r}")
    text = str(value).strip()
    number = float(text) if _NUMBER.fullmatch(text) else 0
    if key == "label" and number != -1 and (not 0 <= number < 2**63 or number % 1):
        wanted = "a name or a whole number from 0, -1 where unknown"
        raise ValueError(f"{where}: `label` must be {wanted}; got {text!r}")
    return "" if number == -1 else text
