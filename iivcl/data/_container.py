"""Opening a video file, and the one error that everything wrong with it turns into."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

__all__ = ["DecodeError", "StrPath", "decode_errors", "name_of", "open_video"]

StrPath = str | os.PathLike[str]


def name_of(video: StrPath | bytes) -> str:
    """Name a video in messages: its path, or the size of its content."""
    return f"<{len(video)} bytes>" if isinstance(video, bytes) else os.fspath(video)


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
    """Turn what FFmpeg or the file system raises into a `DecodeError` that begins with ``name``."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"{name}: {error.strerror or error}") from error


def open_video(
    video: StrPath | bytes, name: str, *, num_threads: int, approximate: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Open a file, or the content of one, and its best video stream, as a player would choose."""
    file: str | io.BytesIO
    if isinstance(video, bytes):
        size, file = len(video), io.BytesIO(video)
    else:  # "file:" keeps a colon in a name from being read as a protocol
        size, file = os.path.getsize(video), f"file:{os.fspath(video)}"
    if size == 0:
        raise DecodeError(f"{name}: the file is empty")
    # Text tags may have any encoding, are of no interest here, and must not raise.
    container = av.open(file, "r", metadata_errors="ignore")
    try:
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
    codec: VideoCodecContext | None = stream.codec_context
    if codec is None:
        raise DecodeError(f"{name}: there is no decoder for the video stream")
    codec.thread_count = num_threads
    codec.thread_type = "SLICE" if num_threads == 1 else "AUTO"
    if approximate:
        codec.skip_frame = "NONREF"
        codec.options = {"skip_loop_filter": "all"}
    return stream
