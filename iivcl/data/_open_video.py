"""Opening a video of any kind, and the verbs that need no more than that."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import File, decode_errors
from iivcl.data._index_cache import IndexPlace
from iivcl.data._pictures import open_array, open_folder
from iivcl.data._stream import Stream
from iivcl.data._video import PixelAspect, Video, VideoInfo, check_indices, check_reading

__all__ = ["open_video", "probe", "read_clips"]

VideoLike = File | npt.NDArray[np.uint8] | Tensor


def open_video(
    video: VideoLike,
    *,
    name: str | None = None,
    num_frames: int | None = None,
    num_threads: int = 1,
    approximate: bool = False,
    keep_index: IndexPlace = "memory",
) -> Video:
    """Open a video of any kind.

    The packets of a file are read once to find its frames, which costs a few per cent of decoding
    them, and does not grow with what is asked for. What was found of a long file is kept.

    Args:
        video: Video file; its content as bytes; a binary file that can seek, such as a member of a
            tar archive; a folder of images, whose natural order is that of the frames; or an array
            (T, H, W, C) uint8, RGB.
        name: What to call it in messages; by default its path.
        num_frames: Its number of frames, where that is known; saves counting them where only
            decoding tells, as in some AVIs.
        num_threads: Threads of the decoder. One is right inside the workers of a DataLoader.
        approximate: As in `read_clips`.
        keep_index: Where to keep what was found. ``"memory"`` keeps the newest four million
            frames' in this process; ``"file"`` keeps it in a hidden file beside the video as well,
            where that can be written. A file whose size or time has changed is read again.

    Returns:
        The open video.

    Raises:
        DecodeError: It cannot be opened.
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> from iivcl.data import make_synthetic_videos, open_video
        >>> [path] = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 1, num_frames=24)
        >>> with open_video(path) as video:
        ...     video.fps, video.times[-1].item(), video.read([[0, 23]]).shape
        (12.0, 1.9166666666666667, torch.Size([1, 3, 2, 48, 48]))
    """
    check_choice("keep_index", keep_index, get_args(IndexPlace))
    check_at_least(1, num_threads=num_threads, num_frames=1 if num_frames is None else num_frames)
    if isinstance(video, (np.ndarray, Tensor)):
        return open_array(np.asarray(video.cpu() if isinstance(video, Tensor) else video), name)
    if isinstance(video, bytes):
        name = name or f"<{len(video)} bytes>"
    elif hasattr(video, "seek") and not isinstance(video, io.TextIOBase):
        name = name or str(getattr(video, "name", "<file>"))
    elif isinstance(video, (str, os.PathLike)):
        name = name or os.fspath(video)
    else:
        raise TypeError(
            "`video` must be a path, bytes, a binary file or an array (T, H, W, C); "
            f"got {type(video).__name__}"
        )
    with decode_errors(name):
        if isinstance(video, (str, os.PathLike)) and os.path.isdir(video):
            return open_folder(os.fspath(video), name)
        return Stream(
            video,
            name,
            num_threads=num_threads,
            approximate=approximate,
            num_frames=num_frames,
            keep_index=keep_index,
        )


def probe(path: VideoLike) -> VideoInfo:
    """Find the number of frames, the rate and the size of a video.

    Counts packets where each is proven to be one frame, and decodes the whole file otherwise.

    Args:
        path: Whatever `open_video` takes.

    Returns:
        What the file holds.

    Raises:
        DecodeError: The file cannot be read, or its first frame cannot be decoded.

    Example:
        >>> import tempfile
        >>> from iivcl.data import make_synthetic_videos, probe
        >>> [path] = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 1, num_frames=24)
        >>> info = probe(path)
        >>> info.num_frames, info.fps, info.height, info.width, info.codec
        (24, 12.0, 48, 48, 'h264')
    """
    with open_video(path) as video:
        return video.info


def read_clips(
    path: VideoLike,
    indices: Tensor | Sequence[Sequence[int]],
    *,
    short_side: int | None = None,
    pixels: PixelAspect = "stored",
    approximate: bool = False,
    num_threads: int = 1,
) -> Tensor:
    """Read exactly the frames asked for, as RGB.

    Frame ``i`` is the i-th frame that decoding the best video stream from its start returns,
    whatever its timestamp says. Rotation and mirror tags are applied. Decoding starts at a keyframe
    where the file proves which frame that is, and at the first frame otherwise; frames that neither
    are asked for nor referred to by others are left out, and only the frames asked for are
    converted, with colours rounded to the nearest. The file is read once to find its keyframes,
    which costs a few per cent of decoding.

    Args:
        path: Whatever `open_video` takes.
        indices: (V, T) frame indices, each in [0, `probe` (path).num_frames); any order, repeats
            allowed.
        short_side: Scale to this many pixels on the shorter side, keeping the aspect, while
            converting to RGB; None keeps the size. Frames that differ in size from the first one
            read are scaled to it.
        pixels: ``"stored"`` gives them as they lie; ``"square"`` scales the width by the aspect of
            the pixels, which is not 1 in some old broadcasts and discs.
        approximate: Skip the frames that no other frame refers to even where they are asked for,
            giving the nearest earlier frame in their place, at most a few frames off, and skip the
            filter of block edges. On H.264 and HEVC files like those of Kinetics, this was 1.1 to
            1.2 times as fast, and the frames differed by 4 to 9 of 255 levels on average. Nothing
            is gained or lost without B-frames and filter, as in most AVIs, and in files decoded
            from their first frame.
        num_threads: Threads of the decoder. One is right inside the workers of a DataLoader.

    Returns:
        (V, C, T, H, W) uint8, contiguous, with memory of its own.

    Raises:
        DecodeError: The file, or a frame asked for, cannot be decoded.
        ValueError: An index is outside the video, or a number is out of range.

    Example:
        >>> import tempfile
        >>> from iivcl.data import make_synthetic_videos, read_clips
        >>> [path] = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 1, num_frames=24)
        >>> read_clips(path, [[0, 4, 8], [10, 14, 18]], short_side=32).shape
        torch.Size([2, 3, 3, 32, 32])
    """
    indices = check_indices(indices)
    check_reading(short_side, pixels)
    with open_video(path, approximate=approximate, num_threads=num_threads) as video:
        return video.read(indices, short_side=short_side, pixels=pixels)
