"""Where pixels come from: crop, resize, flip, blur."""

from __future__ import annotations

from torch import Tensor

from iivcl._checks import check_at_least, check_mask, check_shape
from iivcl.augment import _program as ops
from iivcl.augment import _reference as reference
from iivcl.augment._arguments import check_kernel_size, check_size, check_video
from iivcl.augment._engine import execute

__all__ = ["center_crop", "crop_resize", "gaussian_blur", "horizontal_flip", "resize_short_side"]


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
    return execute((ops.Resample(boxes, check_size(size)),), video)


def resize_short_side(video: Tensor, size: int) -> Tensor:
    """Resize frames so that their short side has ``size`` pixels, keeping the aspect ratio.

    Bilinear with antialiasing. The long side becomes ``int(size * long / short)``.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        size: Pixels of the short side.

    Returns:
        (B, C, T, H', W') in the dtype of ``video``; the input itself when it has that size.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating, or ``size`` is no integer.
        ValueError: ``video`` has another rank, or ``size`` is below 1.

    Example:
        >>> resize_short_side(torch.zeros(1, 3, 8, 240, 320), 128).shape
        torch.Size([1, 3, 8, 128, 170])
    """
    check_video(video)
    check_at_least(1, size=size)
    op = ops.ResizeShortSide(size)
    return execute((op,), video) if op.expand(video) else video


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
    return reference.run((ops.CenterCrop(check_size(size)),), video)


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
    check_shape("flip", flip, "B", B=(len(video), "video"))
    check_mask("flip", flip, "B")
    return execute((ops.Where(flip, (ops.Flip(),)),), video)


def gaussian_blur(video: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur every frame with a Gaussian, each clip with its own width; frames do not mix.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        sigma: (B,) standard deviation in pixels, above 0.
        kernel_size: Odd number of taps; the frame is reflected at its border, so that
            ``kernel_size // 2`` must be below its height and width.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded to the nearest.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape is wrong, ``sigma`` is not above 0 (read on the CPU alone), or
            ``kernel_size`` is even or too large.

    Example:
        >>> import torch
        >>> impulse = torch.tensor([0.0, 0, 1, 0, 0]).expand(1, 1, 1, 5, 5)
        >>> gaussian_blur(impulse, torch.tensor([1.0]), 3)[0, 0, 0, 0]
        tensor([0.0000, 0.2741, 0.4519, 0.2741, 0.0000])
    """
    check_kernel_size(kernel_size)
    return execute((ops.Blur(sigma, kernel_size),), video)
