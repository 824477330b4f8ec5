"""Reading the samples of a dataset in many processes: the epoch, what fails, and who dies."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch.utils.data import get_worker_info
from typing_extensions import Self

from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import DecodeError, StrPath

__all__ = ["Failure", "OnError", "Readings", "Shared", "Skipped"]

OnError = Literal["raise", "substitute", "skip"]
_MAX_SUBSTITUTES = 10
_MAX_WORKERS = 1024
_SECONDS_TO_DIE = 10.0  # on a machine that is busy
_MOST_SHOWN = 10
_logger = logging.getLogger("iivcl.data")

_Attempt = tuple[int, str, Callable[[], Any]]  # a sample, the path of its video, what reads it


class Shared:
    """Integers, zeros at first, that a process and its workers read and write in common."""

    def __init__(self, *shape: int) -> None:
        self.values = torch.zeros(shape, dtype=torch.int64, device="cpu")
        self.values.share_memory_()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> Self:
        copy = type(self)(*self.values.shape)
        copy.values.copy_(self.values)
        return copy


class Skipped(Sequence[Any]):
    """What stands for a sample that cannot be read: false, and only `collate_clips` takes it.

    Attributes:
        cause: What is wrong, with the name of the file.
    """

    def __init__(self, items: Iterable[Any] = (), cause: str = "") -> None:
        """Loaders without batches make copies, as of any sequence."""
        self.cause = cause

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:  # which PyTorch asks of every sample that it collates
        raise ValueError(
            "a video that cannot be read was skipped, as `failures()` tells; to leave it out of "
            "the batch, give the DataLoader `collate_fn=iivcl.data.collate_clips`"
        )

    def __getitem__(self, index: Any) -> Any:
        raise IndexError(index)


class Readings:
    """The epoch, the log of failures and the watch for crashes of one dataset.

    Attributes:
        failures: What could not be read, by this process and its workers.
        crashes: What every worker is reading.
    """

    def __init__(self, on_error: OnError, failure_log: StrPath | None) -> None:
        check_choice("on_error", on_error, get_args(OnError))
        self._on_error = on_error
        self._epoch = Shared()
        self.failures = FailureLog(failure_log)
        self.crashes = CrashWatch()

    @property
    def epoch(self) -> int:
        return int(self._epoch.values)

    def set_epoch(self, epoch: int, num_samples: int) -> None:
        """Choose the epoch, in running workers as well, and sum up the failures of the last."""
        check_at_least(0, epoch=epoch)
        self.failures.summarise(self.epoch, num_samples)
        self._epoch.values.fill_(epoch)

    @property
    def num_substitutes(self) -> int:
        """How many other samples may be tried for one that cannot be read."""
        return _MAX_SUBSTITUTES if self._on_error == "substitute" else 0

    def first(self, attempts: Iterable[_Attempt]) -> Any:
        """Return what the first readable sample gives; else raise the last error, or skip."""
        last: DecodeError | None = None
        for index, path, read in attempts:
            try:
                with self.crashes.reading(index):
                    return read()
            except DecodeError as error:
                self.record(index, path, str(error))
                last = error
            except Exception as error:  # of the user's own functions: no file is to blame
                message = f"{path}: {type(error).__name__}: {error}"
                raise RuntimeError(message) from error
        assert last is not None  # there is at least one sample to try
        if self._on_error == "skip":
            return Skipped(cause=str(last))
        raise last

    def record(self, index: int, path: str, cause: str) -> None:
        """Add a failure of this epoch to the log."""
        self.failures.add(Failure(self.epoch, index, path, cause))

    @contextmanager
    def name_crashes(self, path_of: Callable[[int], str]) -> Iterator[None]:
        """Turn the death of a worker into a `DecodeError` that names what it was reading."""
        self.crashes.forget()  # what a loader left midway was reading
        try:
            try:
                yield
            except (OSError, EOFError):  # a pipe whose other end is gone, before the signal of it
                self.crashes.wait_for_the_dying()  # and then PyTorch's handler of the signal raises
                raise
        except (RuntimeError, OSError, EOFError) as error:
            causes = []
            for index in self.crashes.crashed():
                path = path_of(index)
                causes.append(f"{path}: the process that read it died")
                self.record(index, path, causes[-1])
            if not causes:
                raise
            raise DecodeError("; ".join(causes)) from error


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
        with open(self._path, "ab", buffering=0) as file:
            file.write(line)  # one write: lines of several processes never mix
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
            shown = [causes[index] for index in sorted(causes)]
            if more := len(shown[_MOST_SHOWN:]):
                shown[_MOST_SHOWN:] = [f"and {more} more"]
            counts = epoch, len(causes), num_videos
            _logger.warning("epoch %d: %d of %d videos failed:\n  %s", *counts, "\n  ".join(shown))


class CrashWatch:
    """What each worker is reading, noted where it outlives the worker."""

    def __init__(self) -> None:
        self._in_flight = Shared(_MAX_WORKERS, 2)  # process, sample + 1 (0: none)

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note that this worker reads a sample."""
        worker = get_worker_info()
        if worker is None or worker.id >= _MAX_WORKERS:
            yield
            return
        slot = self._in_flight.values[worker.id]
        slot[0], slot[1] = os.getpid(), index + 1
        try:
            yield
        finally:
            slot[1] = 0

    def forget(self) -> None:
        """Forget all that is being read."""
        self._in_flight.values.zero_()

    def crashed(self) -> list[int]:
        """Find what was being read by processes that are dead."""
        alive = {child.pid for child in multiprocessing.active_children()}
        noted = self._in_flight.values.tolist()
        return [i - 1 for process, i in noted if i and process not in alive]

    def wait_for_the_dying(self) -> None:
        """Wait a moment for processes that read to end."""
        reading = {process for process, i in self._in_flight.values.tolist() if i}
        deadline = time.monotonic() + _SECONDS_TO_DIE
        for child in multiprocessing.active_children():
            if child.pid in reading:
                child.join(max(0, deadline - time.monotonic()))


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(path):  # not by a forked worker that exits
        os.remove(path)
