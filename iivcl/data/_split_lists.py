"""The official split files of UCF101 and HMDB51, lists in plain text, read into manifests."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from iivcl._checks import check_choice

from ._container import StrPath
from ._manifest import Manifest, make_manifest

__all__ = ["read_hmdb51_split", "read_ucf101_split", "ucf101_ids"]


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
    return make_manifest(paths, groups=[_ucf101_group(path) for path in paths]).ids


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
    file = Path(split_file)
    classes: list[str] = []
    for number, line in _lines(file.parent / "classInd.txt"):
        place, _, name = line.partition(" ")
        if place != str(len(classes) + 1) or not name:
            raise _wrong(file.parent / "classInd.txt", number, f"{len(classes) + 1} Class", line)
        classes.append(name)
    paths, labels = [], []
    for number, line in _lines(file):
        name = line.split()[0]
        label, _, _ = name.partition("/")
        if label not in classes:
            raise _wrong(
                file, number, "Class/v_Class_gXX_cYY.avi with a class of classInd.txt", line
            )
        paths.append(_video_path(root, name, suffix))
        labels.append(label)
    return make_manifest(paths, labels, [_ucf101_group(path) for path in paths], classes)


def read_hmdb51_split(
    folder: StrPath,
    root: StrPath,
    *,
    split: Literal[1, 2, 3],
    subset: Literal["train", "test"],
    suffix: str = ".avi",
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
    files = sorted(Path(folder).glob(f"*{ending}"))
    if not files:
        raise FileNotFoundError(f"`folder`: no files *{ending} in {os.fspath(folder)}")
    paths, labels = [], []
    for file in files:
        label = file.name.removesuffix(ending)
        for number, line in _lines(file):
            name, _, part = line.rpartition(" ")
            if not name or part not in ("0", "1", "2"):
                raise _wrong(file, number, "name.avi 0, 1 or 2", line)
            if part == wanted:
                paths.append(_video_path(root, f"{label}/{name.strip()}", suffix))
                labels.append(label)
    return make_manifest(paths, labels, classes=[f.name.removesuffix(ending) for f in files])


def _ucf101_group(path: StrPath) -> str:
    name = os.path.basename(path)
    match = re.fullmatch(r"v_(.+_g\d+)_c\d+(\.\w+)?", name)
    if match is None:
        raise ValueError(f"{name!r} is not a name of UCF101, which are v_Class_gXX_cYY.avi")
    return match[1]


def _video_path(root: StrPath, name: str, suffix: str) -> str:
    return os.path.join(root, os.path.splitext(name)[0] + suffix)


def _lines(file: Path) -> list[tuple[int, str]]:
    lines = file.read_text("utf-8").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _wrong(file: Path, number: int, wanted: str, line: str) -> ValueError:
    return ValueError(f"{file}, line {number}: needs {wanted}; got {line!r}")
