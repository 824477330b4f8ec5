"""Where the frames of a stream are, found from its packets without decoding, and when."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

__all__ = ["Clock", "FrameIndex", "Keyframe", "index_frames"]

# Codecs whose every packet is exactly one shown frame. VP8, for one, has hidden packets.
# fmt: off
_ONE_FRAME_PER_PACKET = frozenset({
    "av1", "ffv1", "gif", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores",
    "vp9",
})
# fmt: on
# Containers that store when each frame is shown; in the others that is guessed.
_STORES_PTS = frozenset({"flv", "gif", "matroska", "mov", "mp4", "mpegts", "webm"})
_AVI_CODECS = frozenset({"mjpeg", "mpeg4"})
# Codecs whose decoder knows the frames that no other refers to, and leaves them out if told so.
_MARKS_REFERENCES = frozenset({"h264", "mpeg2video", "mpeg4"})
_KEPT_BYTES = 2**26  # of packets that stay in memory from the index to the decoder
_SKIPPED_FRAME_BYTES = 32  # a frame to be repeated is a packet of 0 to some 10 bytes in AVIs


class Keyframe(NamedTuple):
    """A frame at which decoding can start.

    Attributes:
        number: Its place among the frames; that of the next one if it is itself not shown.
        seek_time: Where to seek, in the time base of the stream.
        place: Its place among the packets.
        pts: Its presentation time.
    """

    number: int
    seek_time: int
    place: int
    pts: int


@dataclass(frozen=True)
class Clock:
    """When the frames of a video are shown.

    Attributes:
        times: Seconds from the first frame to each frame; nan where the source does not tell.
        fps: Frames per second, on average.
        constant: Whether every frame is shown for as long, up to the rounding of the file.
    """

    times: npt.NDArray[np.float64]
    fps: float
    constant: bool = True


@dataclass
class FrameIndex:
    """The frames of a stream in the order in which the decoder returns them.

    Attributes:
        pts: Presentation time of each frame; ascending where there are keyframes, as decoded and
            of any order otherwise.
        end: When the last frame ends, where the file tells, or when it begins.
        keyframes: Where decoding can start, ascending, the first with number 0; none where the
            packets do not prove where the frames are.
        marks_references: Whether frames that no other refers to can be left undecoded.
        packets: All packets in the order of the file; none of a file that is large.
    """

    pts: array[int]
    end: int
    keyframes: list[Keyframe]
    marks_references: bool = False
    packets: list[Packet[VideoStream]] = field(default_factory=list, repr=False)

    def numbers(self, first: int = 0, last: int | None = None) -> dict[int, int]:
        """Map the times of the frames from ``first`` to ``last`` to their numbers."""
        pts = self.pts[first : None if last is None else last + 1]
        return dict(zip(pts, range(first, first + len(pts)), strict=True))

    def clock(self, tick: float, declared_rate: float) -> Clock:
        """Say when the frames are shown, where a time counts ``tick`` seconds.

        The declared rate, 0 for none, is that of the video where the times agree with it up to
        rounding, and where they are no times: in some AVIs they run backwards.
        """
        count = len(self.pts)
        ticks = np.array(self.pts) - self.pts[0]
        last = self.end - self.pts[-1]
        mean = ticks[-1] / (count - 1) if count > 1 else float(last)  # from frame to frame
        ascending = (np.diff(ticks) > 0).all() and mean > 0
        numbers = np.arange(count)
        if not ascending:
            rate = declared_rate or np.nan
            return Clock(numbers / rate, rate)
        for rate in (declared_rate, 1 / (mean * tick)):
            if rate and (np.abs(ticks - numbers / (rate * tick)) <= 1).all():
                return Clock(numbers / rate, rate)
        duration = (int(ticks[-1]) + (last if last > 0 else mean)) * tick
        return Clock(ticks * tick, count / duration, constant=False)

    def runs(self, wanted: Sequence[int]) -> Iterator[tuple[Keyframe, Sequence[int]]]:
        """Split ascending frames where it is shorter to seek a keyframe than to decode on."""
        start = 0
        for stop in range(1, len(wanted) + 1):
            # The frame behind the one decoded last comes unsought.
            if stop == len(wanted) or (
                self._keyframe_before(wanted[stop]).number > wanted[stop - 1] + 1
            ):
                yield self._keyframe_before(wanted[start]), wanted[start:stop]
                start = stop

    def _keyframe_before(self, number: int) -> Keyframe:
        return self.keyframes[bisect_right(self.keyframes, number, key=lambda k: k.number) - 1]


def index_frames(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """Read all packets and say where every frame is, or None where they do not prove it.

    The decoder returns the frames by rising pts, so the i-th smallest pts is frame i: but only
    where each packet is one frame, all pts are there, and they are what the encoder wrote.
    """
    formats = set(container.format.name.split(","))
    if not _proves_frames(formats, stream):
        return None
    codec = stream.codec.canonical_name
    least_bytes = _SKIPPED_FRAME_BYTES if "avi" in formats or codec == "mpeg4" else 0
    durations: dict[int, int] = {}  # of every packet, by its pts
    hidden: set[int] = set()  # an edit list leaves packets out: they are decoded, never returned
    keyframes: list[Keyframe] = []  # whose numbers are known when all packets are
    kept: list[Packet[VideoStream]] = []
    size = 0
    latest = last = -math.inf  # the greatest dts and pts so far
    for packet in container.demux(stream):
        pts, dts = packet.pts, packet.dts
        if dts is None and pts is None and not packet.size:
            continue  # it ends the stream
        if pts is None or pts in durations or packet.size < least_bytes:
            return None
        # Times that begin anew are of another recording behind the first, as `cat` joins them.
        if (dts is not None and dts < latest) or (packet.is_keyframe and pts < last):
            return None
        latest, last = (latest if dts is None else dts), max(pts, last)
        if packet.is_keyframe:  # MPEG-TS is searched by dts, the others by pts
            seek_time = dts if "mpegts" in formats and dts is not None else pts
            keyframes.append(Keyframe(0, seek_time, len(durations), pts))
        if packet.is_discard:
            hidden.add(pts)
        durations[pts] = packet.duration or 0
        size += packet.size
        kept.append(packet)
        if size > _KEPT_BYTES:
            kept.clear()
    shown = array("q", sorted(durations.keys() - hidden))
    # Frames that lead the first keyframe, or a file cut at any place, may be dropped.
    if not shown or not keyframes or keyframes[0].place or keyframes[0].pts > min(durations):
        return None
    numbered = sorted(k._replace(number=bisect_left(shown, k.pts)) for k in keyframes)
    end = shown[-1] + durations[shown[-1]]
    return FrameIndex(shown, end, numbered, _marks_references(stream), kept)


def _proves_frames(formats: set[str], stream: VideoStream) -> bool:
    """Whether every packet of some bytes is a frame, and its pts the time of it."""
    codec = stream.codec.canonical_name
    if "avi" in formats:  # it counts packets: right where none is reordered
        return codec in _AVI_CODECS and not stream.codec_context.has_b_frames
    return bool(formats & _STORES_PTS) and codec in _ONE_FRAME_PER_PACKET


def _marks_references(stream: VideoStream) -> bool:
    codec = stream.codec.canonical_name
    if codec == "hevc":
        # Its marks hold within one temporal layer. How many there are is in bits 3 to 5 of byte 21
        # of the decoder configuration (ISO/IEC 14496-15, 8.3.3.1), which begins with its version.
        extradata = stream.codec_context.extradata or b""
        return len(extradata) > 21 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return codec in _MARKS_REFERENCES
