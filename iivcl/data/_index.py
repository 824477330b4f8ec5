"""Where each frame of a stream is, found from its packets without decoding them."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from av.container import InputContainer
from av.video.stream import VideoStream

__all__ = ["FrameIndex", "index_frames"]

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


class FrameIndex(NamedTuple):
    """The frames of a stream in the order in which the decoder returns them.

    Attributes:
        pts: Presentation time of every frame, strictly increasing.
        keyframes: Frames at which decoding can start, ascending; the first is 0.
    """

    pts: list[int]
    keyframes: list[int]


def index_frames(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """Read all packets and say where every frame is, or None where they do not prove it.

    The decoder returns the frames by rising pts, so the i-th smallest pts is frame i: but only
    where each packet is one frame, all pts are there, and they are what the encoder wrote.
    """
    packets = [
        packet for packet in container.demux(stream) if packet.size or packet.pts is not None
    ]
    if not packets or not _timestamps_hold(container, stream, min(p.size for p in packets)):
        return None
    times = [packet.pts for packet in packets if packet.pts is not None]
    starts_at_keyframe = packets[0].is_keyframe and packets[0].pts == min(times, default=None)
    if not starts_at_keyframe or len(set(times)) < len(packets):
        return None
    # An edit list leaves packets out of what is shown: they are decoded, never returned.
    pts = sorted(p.pts for p in packets if p.pts is not None and not p.is_discard)
    keyframes = {bisect_left(pts, p.pts) for p in packets if p.pts is not None and p.is_keyframe}
    return FrameIndex(pts, sorted(keyframes - {len(pts)})) if pts else None


def _timestamps_hold(container: InputContainer, stream: VideoStream, smallest: int) -> bool:
    codec = stream.codec_context
    formats = set(container.format.name.split(","))
    if formats & _STORES_PTS:
        return codec.name in _ONE_FRAME_PER_PACKET
    # AVI counts packets: right where none is reordered (no B-frames) and none is left out.
    return (
        "avi" in formats
        and codec.name in _AVI_CODECS
        and not codec.has_b_frames
        and smallest >= _SKIPPED_FRAME_BYTES
    )
