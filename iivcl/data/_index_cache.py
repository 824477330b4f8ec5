"""Indices of files that were read before: some in memory, or each in a file beside its video."""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from dataclasses import replace
from typing import Literal

import numpy as np

from iivcl.data._container import File
from iivcl.data._index import FrameIndex, Keyframe

__all__ = ["IndexPlace", "keep_index_of", "recall_index"]

IndexPlace = Literal["memory", "file"]
_Key = tuple[str, int, int, int]
_FORMAT = 2  # of the indices; those of another are not trusted
_MAX_FRAMES = 2**22  # in memory, of all videos together: 32 MiB
_MIN_FRAMES = 1000  # fewer are found again in a few milliseconds

_memory: dict[_Key, FrameIndex] = {}  # of this process; what was used last is at the end


def recall_index(file: File, place: IndexPlace) -> FrameIndex | None:
    """Find the index of a file that has not changed since it was kept."""
    key = _key(file)
    if key is None:
        return None
    index = _memory.pop(key, None) or (_load(key) if place == "file" else None)
    if index is not None:
        _keep_in_memory(key, index)
    return index


def keep_index_of(file: File, index: FrameIndex | None, place: IndexPlace) -> None:
    """Keep an index for the next reading."""
    key = _key(file)
    if key is not None and index is not None:
        _keep_in_memory(key, index)
        if place == "file":
            _save(key, index)


def _key(file: File) -> _Key | None:
    """Name the content of a file by path, size, time and format; content in memory has no name."""
    if not isinstance(file, (str, os.PathLike)):
        return None
    status = os.stat(file)
    return os.path.abspath(file), status.st_size, status.st_mtime_ns, _FORMAT


def _keep_in_memory(key: _Key, index: FrameIndex) -> None:
    if index.keyframes and len(index.pts) < _MIN_FRAMES:
        return
    _memory[key] = replace(index, packets=[])  # which are of this reading alone
    kept = list(_memory.items())  # at once: other threads read as well
    excess = sum(len(index.pts) for _, index in kept) - _MAX_FRAMES
    for key, index in kept:
        if excess > 0:
            _memory.pop(key, None)
            excess -= len(index.pts)


def _index_file(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.index.npz")


def _save(key: _Key, index: FrameIndex) -> None:
    path, *stamp = key
    temporary = f"{_index_file(path)}.{os.getpid()}.{threading.get_ident()}"
    rest = [index.end, index.marks_references]
    try:
        with open(temporary, "wb") as file:
            np.savez(file, stamp=stamp, pts=index.pts, keyframes=index.keyframes, rest=rest)
        os.replace(temporary, _index_file(path))  # never seen half-written
    except OSError:  # the folder cannot be written, or is full
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _load(key: _Key) -> FrameIndex | None:
    path, *stamp = key
    try:
        with open(_index_file(path), "rb") as file, np.load(file) as numbers:
            if numbers["stamp"].tolist() != stamp:
                return None
            pts = array("q", numbers["pts"].astype(np.int64).tobytes())
            keyframes = [Keyframe(*numbers) for numbers in numbers["keyframes"].tolist()]
            end, marks_references = numbers["rest"].tolist()
    except Exception:  # whatever is wrong with it, the video itself is there
        return None
    return FrameIndex(pts, end, keyframes, bool(marks_references))
