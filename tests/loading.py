"""Loaders whose workers end in an error that a test expects."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def workers_end() -> Iterator[None]:
    """Free a loader as soon as its error has come out, while it can still tell its workers to end.

    The error holds it in a cycle. The garbage collector closes the queues to the workers first, and
    then waits five seconds for workers that were told nothing, in whatever test comes next.
    """
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        raise
