"""Stepping through the frames of an open video, file or folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ._container import DecodeError, StrPath, decode_errors, name_of, open_video
from ._folder import FrameFolder
from ._index import FrameIndex, Keyframe, index_frames

__all__ = ["Source", "open_source", "quarter_turns", "upright_size"]


class Source(Protocol):
    """Frames numbered in the order in which they decode."""

    name: str  # in messages
    codec: str
    fps: float  # nan where the source does not tell

    @property
    def num_frames(self) -> int:
        """Number of frames that can be decoded."""

    @property
    def keyframes(self) -> list[int]:
        """Frames at which decoding can start, ascending from 0."""

    def frames(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Decode the frames ``wanted``, which ascend, in one pass."""

    def close(self) -> None:
        """Release the file."""


@contextmanager
def open_source(
    video: StrPath | bytes,
    *,
    name: str | None = None,
    num_threads: int = 1,
    approximate: bool = False,
    num_frames: int | None = None,
) -> Iterator[Source]:
    """Open a video or a folder of frames; errors while it is open become `DecodeError`.

    ``num_frames``, where it is known from an earlier opening, saves counting by decoding.
    """
    name = name_of(video) if name is None else name
    with decode_errors(name):
        source: Source
        if not isinstance(video, bytes) and os.path.isdir(video):
            source = FrameFolder(os.fspath(video))
        else:
            source = VideoReader(
                video,
                name,
                num_threads=num_threads,
                approximate=approximate,
                num_frames=num_frames,
            )
        try:
            yield source
        finally:
            source.close()


class VideoReader:
    """A `Source` that is a video file, or the content of one."""

    def __init__(
        self,
        video: StrPath | bytes,
        name: str,
        *,
        num_threads: int,
        approximate: bool,
        num_frames: int | None,
    ) -> None:
        self.name = name
        self._video = video
        self._num_threads = num_threads
        self._approximate = approximate
        self._container, self._stream = open_video(
            video, name, num_threads=num_threads, approximate=approximate
        )
        self.codec = self._stream.codec.canonical_name
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else float("nan")
        self._counted = num_frames
        try:
            self._index = index_frames(self._container, self._stream)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        if self._counted is None:
            if self._index is not None:
                self._counted = len(self._index.number_of)
            else:  # nothing but decoding tells
                self._counted = sum(1 for _ in self._decode_from_start())
            if self._counted == 0:
                raise DecodeError(f"{self.name}: no frame can be decoded")
        return self._counted

    @property
    def keyframes(self) -> list[int]:
        return [0] if self._index is None else [k.number for k in self._index.keyframes]

    def frames(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        found = 0
        if self._index is not None:
            self._check_inside(wanted, self.num_frames)
            found = yield from self._seek_frames(self._index, wanted)
        if found < len(wanted):
            yield from self._step_frames(wanted[found:])

    def _seek_frames(
        self, index: FrameIndex, wanted: Sequence[int]
    ) -> Generator[VideoFrame, None, int]:
        """Decode from keyframes; return how many frames were found before a seek went wrong."""
        end = (self.num_frames, None)
        found = 0
        for keyframe, targets in index.runs(wanted):
            decoded = _by_pts(self._decode_run(index, keyframe, targets), index)
            number = -1
            frame: VideoFrame | None = None
            before: VideoFrame | None = None  # stands in for one that approximate reading skips
            for target in targets:
                while number < target:
                    before = frame
                    number, frame = next(decoded, end)
                if number == target and frame is not None:
                    yield frame
                elif self._approximate and before is not None:
                    yield before
                else:
                    return found
                found += 1
        return found

    def _decode_run(
        self, index: FrameIndex, keyframe: Keyframe, targets: Sequence[int]
    ) -> Iterator[VideoFrame]:
        """Decode from a keyframe to the last target, without frames that no target depends on."""
        codec = self._stream.codec_context
        packets: Iterable[Packet[VideoStream]]
        if index.packets:
            codec.flush_buffers()
            packets = itertools.islice(index.packets, keyframe.place, None)
        else:
            self._container.seek(keyframe.seek_time, stream=self._stream)
            packets = self._container.demux(self._stream)
        unsent = set(targets)
        for packet in packets:
            number = -1 if packet.pts is None else index.number_of.get(packet.pts, -1)
            if index.marks_references and not self._approximate:
                codec.skip_frame = "DEFAULT" if number in unsent else "NONREF"
            yield from codec.decode(packet)
            unsent.discard(number)
            if not unsent:
                yield from codec.decode(None)  # what it holds back to put in order
                return

    def _step_frames(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        """Decode from the first frame on."""
        number = -1
        targets = iter(wanted)
        target = next(targets)
        for number, frame in self._decode_from_start():
            if number == target:
                yield frame
                target = next(targets, -1)
                if target == -1:
                    return
        if self._index is None:
            self._check_inside(wanted, number + 1)
        raise DecodeError(f"{self.name}: frame {target} cannot be decoded")

    def _decode_from_start(self) -> Iterator[tuple[int, VideoFrame]]:
        self._container.close()
        self._container, self._stream = open_video(
            self._video, self.name, num_threads=self._num_threads
        )
        frames = self._container.decode(self._stream)
        return enumerate(frames) if self._index is None else _by_pts(frames, self._index)

    def _check_inside(self, wanted: Sequence[int], num_frames: int) -> None:
        if wanted[-1] >= num_frames:
            raise ValueError(
                f"`indices` must be below {num_frames}, the number of frames of {self.name}; "
                f"got {wanted[-1]}"
            )


def quarter_turns(frame: VideoFrame) -> int:
    """Count the counter-clockwise quarter turns after which a frame is upright."""
    return round(frame.rotation / 90)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Give the height and width of a frame once it is turned upright."""
    size = frame.height, frame.width
    return size[::-1] if quarter_turns(frame) % 2 else size


def _by_pts(frames: Iterator[VideoFrame], index: FrameIndex) -> Iterator[tuple[int, VideoFrame]]:
    for frame in frames:
        if frame.pts is not None and frame.pts in index.number_of:
            yield index.number_of[frame.pts], frame
