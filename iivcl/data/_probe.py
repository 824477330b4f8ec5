"""What a video is, read from its packets and its first frame rather than from its header."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ._container import DecodeError, StrPath, open_video
from ._index import index_frames

__all__ = ["VideoInfo", "probe"]


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds.

    Attributes:
        num_frames: Frames that the decoder returns; headers often say another number.
        fps: Average frames per second.
        height: Height in pixels as shown, after rotation.
        width: Width in pixels as shown, after rotation.
        codec: Name of the codec.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    codec: str

    @property
    def duration_seconds(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps


def probe(path: StrPath) -> VideoInfo:
    """Find the number of frames, the rate and the size of a video.

    Counts packets where each is proven to be one frame, and decodes the whole file otherwise.

    Args:
        path: Video file.

    Returns:
        What the file holds.

    Raises:
        DecodeError: The file cannot be read, or its first frame cannot be decoded.

    Example:
        >>> import tempfile
        >>> from iivcl.data import make_synthetic_videos, probe
        >>> [path] = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 1, num_frames=24)
        >>> probe(path)
        VideoInfo(num_frames=24, fps=12.0, height=48, width=48, codec='h264')
    """
    with open_video(path, num_threads=1) as (container, stream):
        index = index_frames(container, stream)
    with open_video(path, num_threads=1) as (container, stream):
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            raise DecodeError(f"{os.fspath(path)}: no frame can be decoded")
        num_frames = len(index.pts) if index is not None else 1 + sum(1 for _ in frames)
        height, width = first.height, first.width
        if first.rotation % 180:
            height, width = width, height
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise DecodeError(f"{os.fspath(path)}: the frame rate is unknown")
        return VideoInfo(num_frames, float(rate), height, width, stream.codec_context.name)
