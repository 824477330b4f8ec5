"""What a video is, read from its packets and its first frame rather than from its header."""

from __future__ import annotations

from dataclasses import dataclass

from ._container import StrPath
from ._reader import open_source, upright_size

__all__ = ["VideoInfo", "probe"]


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds.

    Attributes:
        num_frames: Frames that the decoder returns; headers often say another number.
        fps: Average frames per second; nan where the source does not tell, as a folder of images.
        height: Height in pixels as shown, after rotation.
        width: Width in pixels as shown, after rotation.
        codec: Name of the codec.

    Example:
        >>> from iivcl.data import VideoInfo
        >>> VideoInfo(num_frames=24, fps=12.0, height=48, width=64, codec="h264").duration_seconds
        2.0
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


def probe(path: StrPath | bytes) -> VideoInfo:
    """Find the number of frames, the rate and the size of a video.

    Counts packets where each is proven to be one frame, and decodes the whole file otherwise.

    Args:
        path: Video file, or its content as bytes, or a folder of images.

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
    with open_source(path) as source:
        num_frames = source.num_frames
        height, width = upright_size(next(source.frames([0])))
        return VideoInfo(num_frames, source.fps, height, width, source.codec)
