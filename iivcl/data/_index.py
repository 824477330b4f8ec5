"""Where each frame of a stream is, found from its packets without decoding them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

__all__ = ["FrameIndex", "Keyframe", "index_frames"]

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
    """

    number: int
    seek_time: int
    place: int


class FrameIndex(NamedTuple):
    """The frames of a stream in the order in which the decoder returns them.

    Attributes:
        number_of: From the presentation time of a frame to its number, ascending.
        keyframes: Where decoding can start, ascending; the first has number 0.
        marks_references: Whether frames that no other refers to can be left undecoded.
        packets: All packets in the order of the file; none of a file that is large.
    """

    number_of: dict[int, int]
    keyframes: list[Keyframe]
    marks_references: bool
    packets: list[Packet[VideoStream]]

    def keyframe_before(self, number: int) -> Keyframe:
        """Find the last keyframe that is not behind frame ``number``."""
        return self.keyframes[bisect_right(self.keyframes, number, key=lambda k: k.number) - 1]

    def runs(self, wanted: Sequence[int]) -> Iterator[tuple[Keyframe, Sequence[int]]]:
        """Split ascending frames where it is shorter to seek a keyframe than to decode on."""
        start = 0
        for stop in range(1, len(wanted) + 1):
            # The frame behind the one decoded last comes unsought.
            if stop == len(wanted) or (
                self.keyframe_before(wanted[stop]).number > wanted[stop - 1] + 1
            ):
                yield self.keyframe_before(wanted[start]), wanted[start:stop]
                start = stop


def index_frames(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """Read all packets and say where every frame is, or None where they do not prove it.

    The decoder returns the frames by rising pts, so the i-th smallest pts is frame i: but only
    where each packet is one frame, all pts are there, and they are what the encoder wrote.
    """
    formats = set(container.format.name.split(","))
    packets: list[_Packet] = []
    kept: list[Packet[VideoStream]] = []
    size = 0
    for p in container.demux(stream):
        if p.dts is None and p.pts is None and not p.size:
            continue  # it ends the stream
        packets.append(_Packet(p.pts, p.dts, p.is_keyframe, p.is_discard, p.size))
        size += p.size
        if size <= _KEPT_BYTES:
            kept.append(p)
        else:
            kept.clear()
    times = {packet.pts for packet in packets if packet.pts is not None}
    if not times or len(times) < len(packets) or not _packets_are_frames(formats, stream, packets):
        return None
    # Frames that lead the first keyframe, or a file cut at any place, may be dropped.
    if not packets[0].is_keyframe or packets[0].pts != min(times):
        return None
    # An edit list leaves packets out of what is shown: they are decoded, never returned.
    shown = sorted(times - {packet.pts for packet in packets if packet.is_discard})
    by_dts = "mpegts" in formats  # MPEG-TS is searched by dts, the others by pts
    keyframes = [
        Keyframe(bisect_left(shown, p.pts), p.dts if by_dts and p.dts is not None else p.pts, place)
        for place, p in enumerate(packets)
        if p.is_keyframe and p.pts is not None
    ]
    number_of = {pts: number for number, pts in enumerate(shown)}
    return FrameIndex(number_of, sorted(keyframes), _marks_references(stream), kept)


class _Packet(NamedTuple):
    """What the index needs of a packet: its data may not fit in memory."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool
    size: int


def _packets_are_frames(formats: set[str], stream: VideoStream, packets: list[_Packet]) -> bool:
    codec, is_avi = stream.codec.canonical_name, "avi" in formats
    if (is_avi or codec == "mpeg4") and min(p.size for p in packets) < _SKIPPED_FRAME_BYTES:
        return False
    if is_avi:  # it counts packets: right where none is reordered
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
