"""Opening a video file, and the one error that everything wrong with it turns into."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

__all__ = ["DecodeError", "File", "StrPath", "decode_errors", "open_container", "open_input"]

StrPath = str | os.PathLike[str]
File = StrPath | bytes | BinaryIO

# Text tags may have any encoding, are of no interest here, and must not raise. PyAV 19 keeps the
# bytes of all of them, and takes no word on it.
_TAGS: dict[str, Any] = (
    {"metadata_errors": "ignore"} if hasattr(InputContainer, "metadata_errors") else {}
)

_TEXT = frozenset({"adf", "bin", "idf", "tty", "xbin"})  # which FFmpeg shows as a screen of letters


class DecodeError(RuntimeError):
    """A video cannot be read; the message names the file and the cause.

    Raised for a path that is missing, empty, or a folder without frames, for a file without a
    video stream, and for data that the decoder rejects.

    Example:
        >>> from iivcl.data import DecodeError, probe
        >>> try:
        ...     probe("missing.mp4")
        ... except DecodeError as error:
        ...     print(error)
        missing.mp4: No such file or directory
    """


@contextmanager
def decode_errors(name: str) -> Iterator[None]:
    """Turn what FFmpeg or the file system raises into a `DecodeError` that begins with ``name``.

    PyAV's own lists and fractions do not expect what a damaged file says, which gives the errors
    of Python as well.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{name}: {error.strerror or error}") from error
    except (LookupError, ValueError, ArithmeticError, MemoryError) as error:
        raise DecodeError(f"{name}: damaged: {type(error).__name__}: {error}") from error


def open_input(file: str | BinaryIO) -> InputContainer:
    """Open a file with text tags of any encoding."""
    container: InputContainer = av.open(file, "r", **_TAGS)
    return container


def open_container(
    file: File, name: str, *, num_threads: int, approximate: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Open a file, or the content of one, and its best video stream, as a player would choose."""
    if isinstance(file, bytes):
        file = io.BytesIO(file)
    if isinstance(file, (str, os.PathLike)):
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(f"{name}: it is neither a file nor a folder")
        size = status.st_size
        file = f"file:{os.fspath(file)}"  # keeps a colon in a name from being read as a protocol
    else:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    if size == 0:
        raise DecodeError(f"{name}: the file is empty")
    container = open_input(file)
    try:
        if container.format.name in _TEXT:
            raise DecodeError(
                f"{name}: it is text, and no video ({container.format.name}); a list of videos is "
                "a .csv or .jsonl file, as for `read_manifest`"
            )
        return container, _best_stream(container, name, num_threads, approximate)
    except BaseException:
        container.close()
        raise


def _best_stream(
    container: InputContainer, name: str, num_threads: int, approximate: bool
) -> VideoStream:
    stream = container.streams.best("video")
    # The cover picture of a piece of music counts as a video stream of one frame.
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise DecodeError(f"{name}: the file holds no video stream")
    codec = stream.codec_context
    if codec is None:
        raise DecodeError(f"{name}: there is no decoder for the video stream")
    codec.thread_count = num_threads
    codec.thread_type = "SLICE" if num_threads == 1 else "AUTO"
    codec.flags |= Flags.unaligned  # or the left edge of a crop moves to a multiple of 32 bytes
    if approximate:
        codec.skip_frame = "NONREF"
        codec.options = {"skip_loop_filter": "all"}
    return stream
