"""The official lists of published sets, read into manifests: one function for each format.

| set | the list | classes are numbered by | videos of one id |
|---|---|---|---|
| UCF101 | a text file of paths | `classInd.txt` | clips of one group, `_gXX` |
| HMDB51 | a text file for each class | name | none |
| Kinetics | CSV | name | segments of one YouTube video |
| SSv2 | JSON | the file of labels | none |
| Diving48 | JSON | the list itself | none |
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from iivcl._checks import check_choice
from iivcl.data._container import StrPath
from iivcl.data._manifest import Manifest, Row, make_manifest
from iivcl.data._tables import csv_rows, json_entries, numbered_lines, parse_json, read_text, wrong

__all__ = [
    "read_diving48_split",
    "read_hmdb51_split",
    "read_kinetics_split",
    "read_ssv2_split",
    "read_ucf101_split",
    "ucf101_ids",
]

_Split = Literal[1, 2, 3]
_Subset = Literal["train", "test"]
_logger = logging.getLogger("iivcl.data")


def read_ucf101_split(split_file: StrPath, root: StrPath, *, suffix: str = ".avi") -> Manifest:
    r"""Read ``trainlist01.txt`` or ``testlist01.txt`` of UCF101; sibling clips share an id.

    Args:
        split_file: The list; ``classInd.txt`` lies beside it.
        root: Folder of the class folders.
        suffix: Suffix of the files there, such as ``".mp4"`` for a set encoded anew.

    Returns:
        The videos, classes numbered from 0 as in ``classInd.txt``.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: A line is wrong; the message gives its number.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_ucf101_split
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "classInd.txt").write_text("1 Run\n2 Jump\n")
        >>> _ = (folder / "testlist01.txt").write_text("Jump/v_Jump_g01_c01.avi\n")
        >>> manifest = read_ucf101_split(folder / "testlist01.txt", "/ucf101")
        >>> manifest.paths, manifest.labels
        (['/ucf101/Jump/v_Jump_g01_c01.avi'], tensor([1]))
    """
    classes: list[str] = []
    for where, line in numbered_lines(Path(split_file).with_name("classInd.txt")):
        place, _, name = line.partition(" ")
        if place != str(len(classes) + 1) or not name:
            raise wrong(where, f"{len(classes) + 1} Class", line)
        classes.append(name)
    rows = []
    for where, line in numbered_lines(Path(split_file)):
        name = line.split()[0]  # the list for training ends its lines with the class's number
        label = name.partition("/")[0]
        if label not in classes:
            raise wrong(where, "Class/v_Class_gXX_cYY.avi with a class of classInd.txt", line)
        rows.append(Row(_path(root, name, suffix), label, _ucf101_group(name)))
    return make_manifest(rows, classes)


def ucf101_ids(paths: Sequence[StrPath]) -> Tensor:
    """Number the groups of UCF101: files that differ only in ``_cYY`` are cut from one video.

    Args:
        paths: N files named ``v_Class_gXX_cYY``; any folder, any suffix.

    Returns:
        (N,) int64, equal for files of one group.

    Raises:
        ValueError: A name is not one of UCF101.

    Example:
        >>> from iivcl.data import ucf101_ids
        >>> ucf101_ids(["v_Run_g01_c01.avi", "v_Run_g02_c01.avi", "v_Run_g01_c02.mp4"])
        tensor([0, 1, 0])
    """
    return make_manifest([Row(path, group=_ucf101_group(path)) for path in paths]).ids


def read_hmdb51_split(
    folder: StrPath, root: StrPath, *, split: _Split, subset: _Subset, suffix: str = ".avi"
) -> Manifest:
    r"""Read one of the three splits of HMDB51 from its 51 files ``class_test_splitN.txt``.

    Args:
        folder: Folder of the split files (``testTrainMulti_7030_splits``).
        root: Folder of the class folders.
        split: Which of the three.
        subset: Which part.
        suffix: Suffix of the files there, such as ``".mp4"`` for a set encoded anew.

    Returns:
        The videos, classes in the order of their names.

    Raises:
        FileNotFoundError: The folder holds no files of this split.
        ValueError: A line is wrong; the message gives its number.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_hmdb51_split
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "wave_test_split1.txt").write_text("a.avi 1\nb.avi 2\nc.avi 0\n")
        >>> read_hmdb51_split(folder, "/hmdb51", split=1, subset="test").paths
        ['/hmdb51/wave/b.avi']
    """
    check_choice("subset", subset, ("train", "test"))
    wanted = {"train": "1", "test": "2"}[subset]  # 0: in neither
    ending = f"_test_split{split}.txt"
    files = {file.name.removesuffix(ending): file for file in Path(folder).glob(f"*{ending}")}
    if not files:
        raise FileNotFoundError(f"`folder`: no files *{ending} in {os.fspath(folder)}")
    rows = []
    for label in sorted(files):
        for where, line in numbered_lines(files[label]):
            name, _, part = line.rpartition(" ")
            if not name or part not in ("0", "1", "2"):
                raise wrong(where, "name.avi 0, 1 or 2", line)
            if part == wanted:
                rows.append(Row(_path(root, f"{label}/{name.strip()}", suffix), label))
    return make_manifest(rows, sorted(files))


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
    rows, labels = [], []
    for where, entry in csv_rows(
        Path(csv_file), "youtube_id", "time_start", "time_end", optional=["label"]
    ):
        video, label = entry["youtube_id"], entry.get("label", "")
        times = [entry["time_start"], entry["time_end"]]
        if not video or not all(time.isdecimal() for time in times):
            raise wrong(where, "youtube_id, time_start and time_end in whole seconds", entry)
        stem = "_".join([video, *(time.zfill(6) for time in times)])
        folders, suffixes = (Path(root, label), Path(root)), (".mp4", ".mkv", ".webm", ".avi")
        candidates = (folder / (stem + suffix) for folder in folders for suffix in suffixes)
        path = next(filter(Path.exists, candidates), None)
        labels.append(label)
        if path is not None:
            rows.append(Row(path, label, video))
        elif missing == "raise":
            raise FileNotFoundError(
                f"{where}: no video {stem} in {folders[0]} or {folders[1]}; "
                '`missing="drop"` leaves it out'
            )
    if gone := len(labels) - len(rows):
        _logger.warning("%s: %d of %d videos are missing", csv_file, gone, len(labels))
    return make_manifest(rows, sorted(set(labels) - {""}))


def read_ssv2_split(
    json_file: StrPath, root: StrPath, *, labels_file: StrPath | None = None, suffix: str = ".webm"
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
    classes = [] if labels_file is None else _ssv2_classes(Path(labels_file))
    known, rows = set(classes), []
    for where, entry in json_entries(Path(json_file), "id"):
        template = entry.get("template", "")
        if not isinstance(template, str):
            raise wrong(where, "a text `template`", entry)
        label = template.replace("[", "").replace("]", "") if classes else ""
        if label and label not in known:
            raise ValueError(f"{where}: {label!r} is not in {labels_file}")
        rows.append(Row(os.path.join(root, f"{entry['id']}{suffix}"), label))
    return make_manifest(rows, classes)


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
    rows = []
    for where, entry in json_entries(Path(json_file), "vid_name"):
        if not isinstance(entry.get("label"), int):
            raise wrong(where, "a whole number `label`", entry)
        rows.append(Row(os.path.join(root, f"{entry['vid_name']}.mp4"), str(entry["label"])))
    return make_manifest(rows)


def _ssv2_classes(labels_file: Path) -> list[str]:
    numbers = parse_json(str(labels_file), read_text(labels_file))
    if not isinstance(numbers, dict):
        raise wrong(str(labels_file), "an object of classes and their numbers", numbers)
    named = {str(number): name for name, number in numbers.items()}
    for place in range(len(numbers)):
        if str(place) not in named:
            raise ValueError(f"{labels_file}: numbers must go from 0 on; no class has {place}")
    return [named[str(place)] for place in range(len(numbers))]


def _ucf101_group(path: StrPath) -> str:
    name = os.path.basename(path)
    match = re.fullmatch(r"v_(.+_g\d+)_c\d+(\.\w+)?", name)
    if match is None:
        raise ValueError(f"{name!r} is not a name of UCF101, which are v_Class_gXX_cYY.avi")
    return match[1]


def _path(root: StrPath, name: str, suffix: str) -> str:
    return os.path.join(root, os.path.splitext(name)[0] + suffix)
