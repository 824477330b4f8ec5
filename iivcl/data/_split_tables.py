"""The official split files of Kinetics (CSV), SSv2 and Diving48 (JSON), read into manifests."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

from iivcl._checks import check_choice

from ._container import StrPath
from ._manifest import Manifest, make_manifest

__all__ = ["read_diving48_split", "read_kinetics_split", "read_ssv2_split"]

_logger = logging.getLogger("iivcl.data")


def read_kinetics_split(
    csv_file: StrPath, root: StrPath, *, missing: Literal["raise", "drop"] = "raise"
) -> Manifest:
    r"""Read a CSV of Kinetics-400, -600 or -700; segments of one YouTube video share an id.

    Videos are ``id_000010_000020`` with any of the usual suffixes, in ``root/label`` or ``root``.

    Args:
        csv_file: File with the columns ``youtube_id``, ``time_start``, ``time_end`` and, but for
            the test set, ``label``.
        root: Folder of the videos.
        missing: What happens when videos are not there, as YouTube loses some every year:
            ``"drop"`` leaves them out and logs how many.

    Returns:
        The videos, classes in the order of their names.

    Raises:
        FileNotFoundError: The CSV is missing, or a video and ``missing="raise"``.
        ValueError: A line is wrong; the message gives its number.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_kinetics_split
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> rows = "label,youtube_id,time_start,time_end,split\nabseiling,x7,3,13,train\n"
        >>> _ = (folder / "train.csv").write_text(rows)
        >>> (folder / "x7_000003_000013.mp4").touch()
        >>> read_kinetics_split(folder / "train.csv", folder).classes
        ['abseiling']
    """
    check_choice("missing", missing, ("raise", "drop"))
    file = Path(csv_file)
    paths, labels, groups, names, gone = [], [], [], set(), 0
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            try:
                video = row["youtube_id"]
                stem = f"{video}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, line {reader.line_num}: needs youtube_id, time_start and time_end; "
                    f"got {row}"
                ) from error
            label = row.get("label") or ""
            names.add(label)
            path = _first_existing(Path(root, label, stem), Path(root, stem))
            if path is None and missing == "raise":
                raise FileNotFoundError(
                    f"{file}, line {reader.line_num}: no video {stem} in {Path(root, label)} or "
                    f'{os.fspath(root)}; `missing="drop"` leaves it out'
                )
            if path is None:
                gone += 1
                continue
            paths.append(path)
            labels.append(label)
            groups.append(video)
    if gone:
        _logger.warning("%s: %d of %d videos are missing", file, gone, gone + len(paths))
    return make_manifest(paths, labels, groups, sorted(names - {""}))


def read_ssv2_split(
    json_file: StrPath,
    root: StrPath,
    *,
    labels_file: StrPath | None = None,
    suffix: str = ".webm",
) -> Manifest:
    """Read ``something-something-v2-train.json`` (or validation, or test) of SSv2.

    Args:
        json_file: The split.
        root: Folder of the videos.
        labels_file: ``something-something-v2-labels.json``; None where labels are not needed.
        suffix: Suffix of the videos, such as ``".mp4"`` for a set encoded anew.

    Returns:
        The videos, classes numbered as in ``labels_file``; labels of the test set are -1.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: An entry is wrong; the message gives its place.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_ssv2_split
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> split, labels = folder / "train.json", folder / "labels.json"
        >>> _ = split.write_text('[{"id": "7", "template": "Holding [something]"}]')
        >>> _ = labels.write_text('{"Holding something": "0"}')
        >>> read_ssv2_split(split, "/ssv2", labels_file=labels).paths
        ['/ssv2/7.webm']
    """
    file = Path(json_file)
    numbers = {} if labels_file is None else json.loads(Path(labels_file).read_text("utf-8"))
    classes = sorted(numbers, key=lambda name: int(numbers[name]))
    paths, labels = [], []
    for place, entry in _entries(file, "id"):
        label = entry.get("template", "").replace("[", "").replace("]", "") if numbers else ""
        if label and label not in numbers:
            raise ValueError(f"{file}, entry {place}: {label!r} is not in {labels_file}")
        paths.append(os.path.join(root, f"{entry['id']}{suffix}"))
        labels.append(label)
    return make_manifest(paths, labels, classes=classes)


def read_diving48_split(json_file: StrPath, root: StrPath) -> Manifest:
    """Read ``Diving48_V2_train.json`` or ``Diving48_V2_test.json``.

    Args:
        json_file: The split.
        root: Folder of the ``.mp4`` files.

    Returns:
        The videos, classes numbered 0 to 47 as in the file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: An entry is wrong; the message gives its place.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_diving48_split
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "train.json"
        >>> _ = file.write_text('[{"vid_name": "a_00001", "label": 12}]')
        >>> read_diving48_split(file, "/diving48").labels
        tensor([12])
    """
    file = Path(json_file)
    paths, labels = [], []
    for place, entry in _entries(file, "vid_name"):
        if not isinstance(entry.get("label"), int):
            raise ValueError(f"{file}, entry {place}: needs a whole number `label`; got {entry}")
        paths.append(os.path.join(root, f"{entry['vid_name']}.mp4"))
        labels.append(str(entry["label"]))
    return make_manifest(paths, labels)


def _first_existing(*stems: Path) -> Path | None:
    suffixes = (".mp4", ".mkv", ".webm", ".avi")
    candidates = (stem.with_name(stem.name + suffix) for stem in stems for suffix in suffixes)
    return next((path for path in candidates if path.exists()), None)


def _entries(file: Path, key: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        entries = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{file}: must hold a list; got {type(entries).__name__}")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"{file}, entry {place}: needs `{key}`; got {entry}")
    return list(enumerate(entries))
