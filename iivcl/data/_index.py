"""Where each frame of a stream is, found from its packets without decoding them."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

__all__ = ["FrameIndex", "Keyframe", "index_frames"]

# Codecs whose every packet is exactly one shown frame. VP8, for one, has hidden packets.
# fmt: off
_ONE_FRAME_PER_PACKET = frozenset({
    "av1", "ffv1", "gif", "h264", "hevc", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4",
    "prores", "vp9",
})
# fmt: on
# Containers that store when each frame is shown; in the others that is guessed.
_STORES_PTS = frozenset({"flv", "gif", "matroska", "mov", "mp4", "mpegts", "webm"})
_AVI_CODECS = frozenset({"mjpeg", "mpeg4"})
_SKIPPED_FRAME_BYTES = 32  # AVI writes a frame to be repeated as a packet of 0 to some 10 bytes


class Keyframe(NamedTuple):
    """A frame at which decoding can start.

    Attributes:
        number: Its place among the frames.
        seek_time: Where to seek, in the time base of the stream.
    """

    number: int
    seek_time: int


class FrameIndex(NamedTuple):
    """The frames of a stream in the order in which the decoder returns them.

    Attributes:
        number_of: From the presentation time of a frame to its number, ascending.
        keyframes: Where decoding can start, ascending; the first is frame 0.
    """

    number_of: dict[int, int]
    keyframes: list[Keyframe]

    def keyframe_before(self, number: int) -> Keyframe:
        """Find the last keyframe that is not behind frame ``number``."""
        return self.keyframes[bisect_right(self.keyframes, number, key=lambda k: k.number) - 1]


def index_frames(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """Read all packets and say where every frame is, or None where they do not prove it.

    The decoder returns the frames by rising pts, so the i-th smallest pts is frame i: but only
    where each packet is one frame, all pts are there, and they are what the encoder wrote.
    """
    formats = set(container.format.name.split(","))
    packets = [packet for packet in container.demux(stream) if packet.size]
    if not packets or not _packets_are_frames(formats, stream, packets):
        return None
    times = {packet.pts for packet in packets if packet.pts is not None}
    # Frames that lead the first keyframe, or a file cut at any place, may be dropped.
    first = packets[0]
    if len(times) < len(packets) or not first.is_keyframe or first.pts != min(times):
        return None
    # An edit list leaves packets out of what is shown: they are decoded, never returned.
    shown = times - {packet.pts for packet in packets if packet.is_discard}
    number_of = {pts: number for number, pts in enumerate(sorted(shown))}
    # Matroska is searched by pts, the others by dts.
    by_pts = "matroska" in formats
    keyframes = [
        Keyframe(number_of[packet.pts], packet.pts if by_pts or packet.dts is None else packet.dts)
        for packet in packets
        if packet.is_keyframe and packet.pts in number_of
    ]
    if not keyframes or keyframes[0].number != 0:
        return None
    return FrameIndex(number_of, sorted(keyframes))


def _packets_are_frames(
    formats: set[str], stream: VideoStream, packets: list[Packet[VideoStream]]
) -> bool:
    codec = stream.codec_context
    if formats & _STORES_PTS:
        return codec.name in _ONE_FRAME_PER_PACKET
    # AVI counts packets: right where none is reordered (no B-frames) and none is left out.
    return (
        "avi" in formats
        and codec.name in _AVI_CODECS
        and not codec.has_b_frames
        and min(packet.size for packet in packets) >= _SKIPPED_FRAME_BYTES
    )
