"""A video file: from keyframe to keyframe where its packets prove the way, else step by step."""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property, partial

from av import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from iivcl.data._container import DecodeError, File, decode_errors, open_container
from iivcl.data._index import Clock, FrameIndex, Keyframe, index_frames
from iivcl.data._index_cache import IndexPlace, keep_index_of, recall_index
from iivcl.data._pixels import Picture, frame_orientation
from iivcl.data._video import Video

__all__ = ["Stream"]

# Decoding from the start, and the number of the frame that it gave last; none can follow nowhere.
_Forward = tuple[int, Iterator[tuple[int, VideoFrame]]]
_NOWHERE: _Forward = (sys.maxsize, iter(()))


class Stream(Video):
    """A video file, or the content of one."""

    def __init__(
        self,
        file: File,
        name: str,
        *,
        num_threads: int,
        approximate: bool,
        num_frames: int | None,
        keep_index: IndexPlace,
    ) -> None:
        self.name = name
        self._approximate, self._given = approximate, num_frames
        self._open = partial(open_container, file, name, num_threads=num_threads)
        self._keep = partial(keep_index_of, file, place=keep_index)
        self._container, self._stream = self._open(approximate=approximate)
        self._forward: _Forward = _NOWHERE
        self.codec = self._stream.codec.canonical_name
        try:
            # PyAV 19 has a type of its own for fractions, and 0 for None.
            aspect = self._stream.sample_aspect_ratio or Fraction(1)
            self._stored_aspect = Fraction(aspect.numerator, aspect.denominator)
            self._rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
            self._tick = float(self._stream.time_base or 0)
            self._index = recall_index(file, keep_index)
            if self._index is None:
                self._index = index_frames(self._container, self._stream)
                self._keep(self._index)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        self._forward = _NOWHERE
        self._container.close()

    @property
    def num_frames(self) -> int:
        if self._index is None and self._given is not None:
            return self._given
        return len(self._counted().pts)

    @property
    def keyframes(self) -> list[int]:
        keyframes = [] if self._index is None else self._index.keyframes
        return [keyframe.number for keyframe in keyframes] or [0]

    @property
    def _counts_without_decoding(self) -> bool:  # type: ignore[override]
        return self._index is not None

    @cached_property
    def _clock(self) -> Clock:
        return self._counted().clock(self._tick, self._rate)

    def _counted(self) -> FrameIndex:
        """Give the index, or what decoding everything says where the packets prove none."""
        if self._index is None:
            self._check_open()
            with decode_errors(self.name):
                frames = [(f.pts or 0, f.duration) for _, f in self._decode_from_start()]
            if not frames:
                raise DecodeError(f"{self.name}: no frame can be decoded")
            pts = array("q", (start for start, _ in frames))
            self._index = FrameIndex(pts, sum(frames[-1]), keyframes=[])
            self._keep(self._index)
        return self._index

    def _frames(self, wanted: Sequence[int]) -> Iterator[Picture]:
        index, found = self._index, 0
        (number, decoded), self._forward = self._forward, _NOWHERE
        if index is not None and index.keyframes:
            number = sys.maxsize  # a seek loses the place
            for keyframe, targets in index.runs(wanted):
                numbers = index.numbers(keyframe.number, targets[-1])
                decoded = _numbered(self._decode_run(index, keyframe, targets, numbers), numbers)
                reached = yield from _pick(decoded, targets, self._approximate)
                found += reached
                if reached < len(targets):  # the seek went wrong
                    break
        if found < len(wanted):
            if number >= wanted[found]:
                decoded = self._decode_from_start()
            found += yield from _pick(decoded, wanted[found:])
            if found == len(wanted):  # the next reading may go on from here
                self._forward = wanted[-1], decoded

    def _decode_run(
        self, index: FrameIndex, keyframe: Keyframe, targets: Sequence[int], numbers: dict[int, int]
    ) -> Iterator[VideoFrame]:
        """Decode from a keyframe to the last target, without frames that no target depends on."""
        codec = self._stream.codec_context
        unsent = set(targets)
        for packet in self._packets_from(index, keyframe):
            number = -1 if packet.pts is None else numbers.get(packet.pts, -1)
            if index.marks_references and not self._approximate:
                codec.skip_frame = "DEFAULT" if number in unsent else "NONREF"
            yield from codec.decode(packet)
            unsent.discard(number)
            if not unsent:
                yield from codec.decode(None)  # what it holds back to put in order
                return

    def _packets_from(self, index: FrameIndex, keyframe: Keyframe) -> Iterable[Packet[VideoStream]]:
        if index.packets:
            self._stream.codec_context.flush_buffers()
            return itertools.islice(index.packets, keyframe.place, None)
        try:
            self._container.seek(keyframe.seek_time, stream=self._stream)
        except FFmpegError:  # a file without what a seek needs
            return ()
        packets = self._container.demux(self._stream)
        return itertools.dropwhile(lambda packet: packet.pts != keyframe.pts, packets)

    def _decode_from_start(self) -> Iterator[tuple[int, VideoFrame]]:
        self._forward = _NOWHERE
        self._container.close()
        self._container, self._stream = self._open()
        frames = self._container.decode(self._stream)
        if self._index is None or not self._index.keyframes:
            return enumerate(frames)
        return _numbered(frames, self._index.numbers())


def _pick(
    decoded: Iterator[tuple[int, VideoFrame]], targets: Sequence[int], approximate: bool = False
) -> Generator[Picture, None, int]:
    """Yield the frames whose numbers are wanted, up to the first that is not there; count them."""
    number = -1
    frame: VideoFrame | None = None
    before: VideoFrame | None = None
    for found, target in enumerate(targets):
        while number < target:
            before = frame
            number, frame = next(decoded, (sys.maxsize, None))
        # The frame before stands in for one that approximate reading leaves out.
        shown = frame if number == target else before if approximate else None
        if shown is None:
            return found
        yield shown, frame_orientation(shown)
    return len(targets)


def _numbered(
    frames: Iterator[VideoFrame], numbers: dict[int, int]
) -> Iterator[tuple[int, VideoFrame]]:
    for frame in frames:
        if frame.pts is not None and frame.pts in numbers:
            yield numbers[frame.pts], frame
