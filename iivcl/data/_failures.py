"""A record of the videos that could not be read, shared by the workers of a DataLoader."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import weakref
from dataclasses import asdict, dataclass

from typing_extensions import Self

from iivcl.data._container import StrPath

__all__ = ["Failure", "FailureLog"]

_logger = logging.getLogger("iivcl.data")


@dataclass(frozen=True)
class Failure:
    """One reading that failed.

    Attributes:
        epoch: Epoch of the reading.
        index: Index of the video in the dataset.
        path: The file.
        cause: What is wrong with it.

    Example:
        >>> from iivcl.data import Failure
        >>> Failure(epoch=0, index=3, path="a.mp4", cause="a.mp4: the file is empty").path
        'a.mp4'
    """

    epoch: int
    index: int
    path: str
    cause: str


class FailureLog:
    """A file of JSON lines: the one place that every process on a machine can append to."""

    def __init__(self, path: StrPath | None) -> None:
        if path is None:
            file, self._path = tempfile.mkstemp(prefix="iivcl-failures-", suffix=".jsonl")
            os.close(file)
            weakref.finalize(self, _remove, self._path, os.getpid())
        else:
            self._path = os.path.abspath(path)
        # What an earlier run wrote stays in the file and is not read again.
        self._start = os.path.getsize(self._path) if os.path.exists(self._path) else 0
        self._announced = False

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copy of a dataset goes on with its log

    def add(self, failure: Failure) -> None:
        """Append one failure; the first of each process is announced at once."""
        line = (json.dumps(asdict(failure)) + "\n").encode()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, line)  # one write: lines of several processes never mix
        finally:
            os.close(file)
        if not self._announced:
            self._announced = True
            _logger.warning("%s (further failures: see `failures()`)", failure.cause)

    def read(self) -> list[Failure]:
        """Return all failures so far, of all processes."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._start)
                return [Failure(**json.loads(line)) for line in file]
        except FileNotFoundError:
            return []

    def summarise(self, epoch: int, num_videos: int) -> None:
        """Log what failed in one epoch, each video once; nothing if nothing did."""
        causes = {f.index: f.cause for f in self.read() if f.epoch == epoch}
        if causes:
            shown = "".join(f"\n  {causes[index]}" for index in sorted(causes)[:_SHOWN])
            rest = f"\n  and {len(causes) - _SHOWN} more" if len(causes) > _SHOWN else ""
            _logger.warning(
                "epoch %d: %d of %d videos failed:%s%s", epoch, len(causes), num_videos, shown, rest
            )


_SHOWN = 10


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(path):  # not by a forked worker that exits
        os.remove(path)
