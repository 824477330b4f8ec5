"""Where pixels come from: crop, resize, flip."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as NF
from torch import Tensor

from iivcl._checks import check_shape
from iivcl.augment.functional._clip import check_video, select_clips, values_are_free
from iivcl.augment.functional._separable import apply_separable, resize_weights

__all__ = ["center_crop", "crop_resize", "horizontal_flip", "resize_short_side"]


def crop_resize(video: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut one box out of every clip and resize it, bilinear with antialiasing.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        boxes: (B, 4) int64, in pixels: top, left, height, width. Boxes lie within the frame; on
            an accelerator they are not checked.
        size: Height and width of the result in pixels; one number for a square.

    Returns:
        (B, C, T, height, width) in the dtype of ``video``; uint8 is rounded to the nearest.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating, or ``boxes`` is not an integer tensor.
        ValueError: A shape is wrong, ``size`` is below 1, or a box leaves the frame.

    Example:
        >>> video = torch.zeros(2, 3, 8, 128, 170, dtype=torch.uint8)
        >>> boxes = torch.tensor([[0, 0, 128, 128], [20, 30, 64, 80]])
        >>> crop_resize(video, boxes, 112).shape
        torch.Size([2, 3, 8, 112, 112])
    """
    check_video(video)
    check_shape("boxes", boxes, "B 4", B=(video.shape[0], "video"))
    if boxes.is_floating_point():
        raise TypeError(f"`boxes` must be an integer tensor of pixels; got {boxes.dtype}")
    height, width = check_size(size)
    if values_are_free(boxes) and values_are_free(video):
        return _crop_resize_each(video, boxes, height, width)
    return _crop_resize_batched(video, boxes, height, width)


def _crop_resize_each(video: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip by clip: on the CPU the native uint8 kernel beats matrix products three times over."""
    out = video.new_empty(*video.shape[:3], height, width)
    in_height, in_width = video.shape[-2:]
    for clip, resized, (top, left, h, w) in zip(video, out, boxes.tolist(), strict=True):
        fits = 0 <= top < top + h <= in_height and 0 <= left < left + w <= in_width
        if not fits:
            raise ValueError(
                f"`boxes` must lie within the frame of {in_height} x {in_width} pixels; "
                f"got top {top}, left {left}, height {h}, width {w}"
            )
        box = clip[..., top : top + h, left : left + w]
        resized.copy_(_resize(box, height, width))
    return out


def _crop_resize_batched(video: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """All clips at once, without reading a box on the host."""
    top, left, h, w = boxes.to(video.device, non_blocking=True).unbind(1)
    vertical = resize_weights(top, h, video.shape[-2], height)  # (B, height, H)
    horizontal = resize_weights(left, w, video.shape[-1], width)  # (B, width, W)
    return apply_separable(video, vertical, horizontal)


def _resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (..., H, W), bilinear with antialiasing, in its dtype."""
    if frames.shape[-2:] == (height, width):
        return frames
    shape = (*frames.shape[:-2], height, width)
    if frames.numel() == 0:
        return frames.new_empty(shape)
    # Frames are independent, so any four make up an "image": with its channels last, that is the
    # layout which the native uint8 kernel of the CPU runs fastest on.
    planes = math.prod(shape[:-2])
    group = 4 if planes % 4 == 0 else 3 if planes % 3 == 0 else 1
    images = frames.reshape(-1, group, *frames.shape[-2:])
    if frames.dtype == torch.uint8 and frames.device.type == "cpu":
        return _planar(_antialiased(_interleaved(images), height, width)).view(shape)
    resized = _antialiased(
        images.to(torch.promote_types(frames.dtype, torch.float32)), height, width
    )
    if not frames.is_floating_point():
        resized = resized.round_()
    return resized.to(frames.dtype).view(shape)


def _interleaved(images: Tensor) -> Tensor:
    """Put uint8 images (N, C, H, W) into channels-last order, four bytes at a time if possible."""
    planes = images.unbind(1)
    if len(planes) != 4:
        return torch.stack(planes, dim=-1).movedim(-1, 1)
    pixels = planes[0].to(torch.int32)  # (N, H, W)
    for i in (1, 2, 3):
        pixels.add_(planes[i].to(torch.int32), alpha=1 << 8 * i)
    return pixels.unsqueeze(-1).view(torch.uint8).movedim(-1, 1)


def _planar(images: Tensor) -> Tensor:
    """Undo :func:`_interleaved`."""
    n, channels, height, width = images.shape
    if channels != 4:
        return images.contiguous()
    pixels = images.permute(0, 2, 3, 1).contiguous().view(torch.int32).squeeze(-1)  # (N, H, W)
    planes = images.new_empty(n, 4, height, width)
    for i in range(4):
        planes[:, i] = pixels >> 8 * i  # of which uint8 keeps the lowest byte
    return planes


def _antialiased(images: Tensor, height: int, width: int) -> Tensor:
    return NF.interpolate(images, (height, width), mode="bilinear", antialias=True)


def resize_short_side(video: Tensor, size: int) -> Tensor:
    """Resize frames so that their short side has ``size`` pixels, keeping the aspect ratio.

    Bilinear with antialiasing. The long side becomes ``int(size * long / short)``.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        size: Pixels of the short side.

    Returns:
        (B, C, T, H', W') in the dtype of ``video``; the input itself when it has that size.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: ``video`` has another rank, or ``size`` is below 1.

    Example:
        >>> resize_short_side(torch.zeros(1, 3, 8, 240, 320), 128).shape
        torch.Size([1, 3, 8, 128, 170])
    """
    check_video(video)
    height, width = short_side_size(video.shape[-2], video.shape[-1], check_size(size)[0])
    if video.shape[-2:] == (height, width):
        return video
    return _resize(video, height, width)


def center_crop(video: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Cut the middle of every frame.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        size: Height and width of the result in pixels; one number for a square.

    Returns:
        (B, C, T, height, width), a view of ``video``.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: ``video`` has another rank, or ``size`` is below 1 or larger than the frame.

    Example:
        >>> center_crop(torch.zeros(1, 3, 8, 128, 170), 112).shape
        torch.Size([1, 3, 8, 112, 112])
    """
    check_video(video)
    height, width = check_size(size)
    if height > video.shape[-2] or width > video.shape[-1]:
        raise ValueError(
            f"`size` must fit in the frame of {video.shape[-2]} x {video.shape[-1]} pixels; "
            f"got {height} x {width}. Resize first"
        )
    top = round((video.shape[-2] - height) / 2)
    left = round((video.shape[-1] - width) / 2)
    return video[..., top : top + height, left : left + width]


def horizontal_flip(video: Tensor, flip: Tensor) -> Tensor:
    """Mirror the chosen clips left to right.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        flip: (B,) bool, which clips to mirror.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating, or ``flip`` is not bool.
        ValueError: A shape is wrong.

    Example:
        >>> video = torch.arange(6).float().view(2, 1, 1, 1, 3)
        >>> horizontal_flip(video, torch.tensor([True, False])).flatten(1)
        tensor([[2., 1., 0.],
                [3., 4., 5.]])
    """
    check_video(video)
    return select_clips("flip", flip, video, lambda clips, rows: clips.flip(-1))


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of ``size``, or say what is wrong with it."""
    pair = (size, size) if isinstance(size, int) else size
    if not (isinstance(pair, tuple) and [type(side) for side in pair] == [int, int]):
        raise TypeError(f"`size` must be an int or two of them, height and width; got {size!r}")
    height, width = pair
    if min(height, width) < 1:
        raise ValueError(f"`size` must be at least 1 pixel; got {size}")
    return height, width


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the short side has ``size`` pixels."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size
