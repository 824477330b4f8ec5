"""What a dataset shares with its workers: the epoch, what failed, and what is being read."""

from __future__ import annotations

import multiprocessing
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from iivcl._checks import check_choice

from ._container import DecodeError, StrPath
from ._failures import Failure, FailureLog

__all__ = ["MAX_SUBSTITUTES", "OnError", "Readings", "shared_zeros"]

OnError = Literal["raise", "substitute", "skip"]
MAX_SUBSTITUTES = 10
_MAX_WORKERS = 1024
_SECONDS_TO_DIE = 1.0


class Readings(ABC):
    """Base of the datasets of clips; their samples are numbered."""

    def __init__(self, on_error: OnError, failure_log: StrPath | None) -> None:
        check_choice("on_error", on_error, ("raise", "substitute", "skip"))
        self._on_error = on_error
        self._epoch = shared_zeros()
        self._failures = FailureLog(failure_log)
        self._in_flight = shared_zeros(_MAX_WORKERS, 2)  # process, sample + 1 (0: none)

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples in an epoch."""

    @abstractmethod
    def path(self, index: int) -> str:
        """Return the path of one video."""

    def failures(self) -> list[Failure]:
        """Return every failed reading so far, of this process and its workers."""
        return self._failures.read()

    @contextmanager
    def name_crashes(self) -> Iterator[None]:
        """Turn the death of a worker into a `DecodeError` that names what it was reading.

        A decoder that crashes takes its process with it, and PyTorch's error tells the number of
        the process alone. Put the loop over the DataLoader inside this context.

        Raises:
            DecodeError: A worker died while it read a video; it is among `failures` as well.

        Example:
            >>> import tempfile, torch
            >>> from iivcl.data import ClipRecipe, VideoClips, make_synthetic_videos
            >>> paths = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 2)
            >>> dataset = VideoClips(paths, ClipRecipe(num_frames=4, stride=2))
            >>> with dataset.name_crashes():
            ...     for clips, index in torch.utils.data.DataLoader(dataset):
            ...         pass
        """
        self._in_flight.zero_()  # of a loader that was left midway
        try:
            try:
                yield
            except (OSError, EOFError):  # a pipe whose other end is gone, before the signal of it
                self._wait_for_the_dying()  # and then PyTorch's handler of the signal raises
                raise
        except (RuntimeError, OSError, EOFError) as error:
            causes = {i: f"{self.path(i)}: the process that read it died" for i in self._crashed()}
            if not causes:
                raise
            for index, cause in causes.items():
                self._record(index, self.path(index), cause)
            raise DecodeError("; ".join(causes.values())) from error

    def _read_first(self, readings: Iterable[tuple[int, str, Callable[[], Any]]]) -> Any:
        """Return what the first sample gives that can be read, else raise the last error or skip.

        Args:
            readings: The number and the path of each sample to try, and what reads it.
        """
        last: DecodeError | None = None
        for index, path, read in readings:
            try:
                with self._flying(index):
                    return read()
            except DecodeError as error:
                self._record(index, path, str(error))
                last = error
        if self._on_error == "skip":
            return None
        assert last is not None  # there is at least one sample to try
        raise last

    def _record(self, index: int, path: str, cause: str) -> None:
        self._failures.add(Failure(int(self._epoch), index, path, cause))

    @contextmanager
    def _flying(self, index: int) -> Iterator[None]:
        worker = get_worker_info()
        if worker is None or worker.id >= _MAX_WORKERS:
            yield
            return
        slot = self._in_flight[worker.id]
        slot[0], slot[1] = os.getpid(), index + 1
        try:
            yield
        finally:
            slot[1] = 0

    def _crashed(self) -> list[int]:
        """Find what was being read by processes that are dead."""
        alive = {child.pid for child in multiprocessing.active_children()}
        return [i - 1 for process, i in self._in_flight.tolist() if i and process not in alive]

    def _wait_for_the_dying(self) -> None:
        reading = {process for process, i in self._in_flight.tolist() if i}
        deadline = time.monotonic() + _SECONDS_TO_DIE
        for child in multiprocessing.active_children():
            if child.pid in reading:
                child.join(max(0, deadline - time.monotonic()))


def shared_zeros(*shape: int) -> Tensor:
    """Create int64 zeros that a process and its workers read and write in common."""
    zeros = torch.zeros(shape, dtype=torch.int64)
    zeros.share_memory_()  # type: ignore[no-untyped-call]
    return zeros
