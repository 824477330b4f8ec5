"""Reading exactly the frames that were asked for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ._container import DecodeError, StrPath, decode_errors, open_video
from ._index import FrameIndex, index_frames

__all__ = ["frames_at", "read_clips"]


def read_clips(
    path: StrPath,
    indices: Tensor | Sequence[Sequence[int]],
    *,
    short_side: int | None = None,
    num_threads: int = 1,
) -> Tensor:
    """Read exactly the frames asked for, as RGB.

    Frame ``i`` is the i-th frame that decoding the best video stream from its start returns,
    whatever its timestamp says. Rotation tags are applied. Decoding starts at a keyframe where
    the file proves which frame that is, and at the first frame otherwise; only the frames asked
    for are converted.

    Args:
        path: Video file.
        indices: (V, T) frame indices, each in [0, `probe` (path).num_frames); any order, repeats
            allowed.
        short_side: Scale to this many pixels on the shorter side, keeping the aspect, while
            converting to RGB; None keeps the size.
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
    indices = _check_indices(indices)
    for name, value in (("short_side", short_side), ("num_threads", num_threads)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")

    wanted, slots = torch.unique(indices, return_inverse=True)  # slots (V, T) into wanted
    frames = frames_at(path, wanted.tolist(), num_threads=num_threads)
    return _to_clips(path, frames, slots, short_side)


def frames_at(path: StrPath, wanted: Sequence[int], *, num_threads: int) -> Iterator[VideoFrame]:
    """Decode the frames ``wanted``, which ascend, in one pass."""
    with open_video(path, num_threads=num_threads) as (container, stream):
        index = index_frames(container, stream)
        if index is not None:
            _check_inside(path, wanted, len(index.pts))
            yield from _seek_frames(path, container, stream, index, wanted)
            return
    with open_video(path, num_threads=num_threads) as (container, stream):
        yield from _count_frames(path, container, stream, wanted)


def _count_frames(
    path: StrPath, container: InputContainer, stream: VideoStream, wanted: Sequence[int]
) -> Iterator[VideoFrame]:
    remaining = iter(wanted)
    target = next(remaining)
    number = -1
    for number, frame in enumerate(container.decode(stream)):
        if number == target:
            yield frame
            target = next(remaining, -1)
            if target == -1:
                return
    _check_inside(path, wanted, number + 1)


def _seek_frames(
    path: StrPath,
    container: InputContainer,
    stream: VideoStream,
    index: FrameIndex,
    wanted: Sequence[int],
) -> Iterator[VideoFrame]:
    number_of = {pts: number for number, pts in enumerate(index.pts)}
    decoder: Iterator[VideoFrame] = iter(())
    current = -1  # the frame that the decoder returned last

    def restart(keyframe: int) -> Iterator[VideoFrame]:
        container.seek(index.pts[keyframe], stream=stream)
        return container.decode(stream)

    def advance(target: int) -> VideoFrame | None:
        nonlocal current
        for frame in decoder:
            current = number_of.get(frame.pts, current) if frame.pts is not None else current
            if current >= target:
                return frame if current == target else None
        return None

    for target in wanted:
        keyframe = index.keyframes[bisect_right(index.keyframes, target) - 1]
        if current < keyframe or current < 0:
            decoder = restart(keyframe)
        frame = advance(target)
        if frame is None:  # the seek landed behind the target, or the keyframe is none
            decoder, current = restart(0), -1
            frame = advance(target)
        if frame is None:
            raise DecodeError(f"{os.fspath(path)}: frame {target} cannot be decoded")
        yield frame


def _to_clips(
    path: StrPath, frames: Iterator[VideoFrame], slots: Tensor, short_side: int | None
) -> Tensor:
    """Convert frames to RGB and put frame j wherever ``slots`` (V, T) holds j."""
    clips = torch.empty(0, dtype=torch.uint8)
    reformatter = VideoReformatter()
    with decode_errors(path):
        for number, frame in enumerate(frames):
            image = _to_rgb(reformatter, frame, short_side)  # (C, H, W)
            if number == 0:
                clips = torch.empty(*slots.shape, *image.shape, dtype=torch.uint8)
                clips = clips.transpose(1, 2).contiguous()
            for v, t in (slots == number).nonzero().tolist():
                clips[v, :, t] = image
    return clips


# Accurate rounding also keeps swscale off its unscaled fast path, which leaves the last columns
# of planar RGB unwritten where the width is no multiple of 8.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND


def _to_rgb(reformatter: VideoReformatter, frame: VideoFrame, short_side: int | None) -> Tensor:
    height, width = frame.height, frame.width
    if short_side is not None:
        short = min(height, width)
        height, width = short_side * height // short, short_side * width // short
    planar = reformatter.reformat(frame, width, height, "gbrp", interpolation=_SCALING, threads=1)
    green, blue, red = (
        torch.from_numpy(np.frombuffer(memoryview(plane), np.uint8).reshape(height, -1)[:, :width])
        for plane in planar.planes
    )
    image = torch.stack([red, green, blue])
    return image.rot90(frame.rotation // 90, dims=(1, 2))


def _check_indices(indices: Tensor | Sequence[Sequence[int]]) -> Tensor:
    indices = torch.as_tensor(indices)
    if indices.ndim != 2 or indices.numel() == 0:
        raise ValueError(
            f"`indices` must have shape (V, T), both at least 1; got {tuple(indices.shape)}"
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"`indices` must be integers; got {indices.dtype}")
    if (indices < 0).any():
        raise ValueError(f"`indices` must be at least 0; got {int(indices.min())}")
    return indices


def _check_inside(path: StrPath, wanted: Sequence[int], num_frames: int) -> None:
    if wanted[-1] >= num_frames:
        raise ValueError(
            f"`indices` must be below {num_frames}, the number of frames of {os.fspath(path)}; "
            f"got {wanted[-1]}"
        )
