"""Filters that mix neighbouring pixels of one frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iivcl.augment.functional._clip import check_video, per_clip, values_are_free
from iivcl.augment.functional._separable import (
    apply_banded,
    apply_banded_to_clip,
    apply_taps,
    gaussian_taps,
    gaussian_weights,
)

__all__ = ["gaussian_blur"]

_REACH = 6.0  # sigmas: what a tap weighs out there, exp(-18), is lost in rounding to float32


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
    check_video(video)
    check_reach(kernel_size, video)
    sigma = per_clip("sigma", sigma, video, low=1e-6).flatten()
    if values_are_free(sigma) and not video.requires_grad:
        out = torch.empty(video.shape, dtype=video.dtype)
        for clip, width_of_clip, blurred in zip(video, sigma, out, strict=True):
            blurred.copy_(blur_clip(clip, width_of_clip, kernel_size))
        return out
    if torch.compiler.is_compiling():
        return apply_taps(video, gaussian_taps(sigma, kernel_size))
    height, width = video.shape[-2:]
    vertical = gaussian_weights(sigma, kernel_size, height)
    horizontal = vertical if width == height else gaussian_weights(sigma, kernel_size, width)
    return apply_banded(video, vertical, horizontal, kernel_size // 2)


def blur_clip(
    clip: Tensor,
    sigma: Tensor,
    kernel_size: int,
    scratch: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Blur one clip (C, T, H, W) on the CPU, leaving out taps that are too small for float32.

    Neither ``sigma``, a tensor of one number, nor ``kernel_size`` is checked. For ``scratch`` see
    :func:`apply_banded_to_clip`.
    """
    radius = min(kernel_size // 2, math.ceil(_REACH * sigma.item()))
    size, (height, width) = 2 * radius + 1, clip.shape[-2:]
    vertical = gaussian_weights(sigma.view(1), size, height)[0]
    horizontal = vertical if width == height else gaussian_weights(sigma.view(1), size, width)[0]
    return apply_banded_to_clip(clip, vertical, horizontal, radius, scratch)


def check_kernel_size(kernel_size: int) -> None:
    """Check that a kernel has a middle tap."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"`kernel_size` must be odd and at least 1; got {kernel_size}")


def check_reach(kernel_size: int, video: Tensor) -> None:
    """Check a kernel whose ends are reflected at the border of the frame."""
    check_kernel_size(kernel_size)
    height, width = video.shape[-2:]
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"`kernel_size` {kernel_size} reaches {kernel_size // 2} pixels, which must be less "
            f"than the height and width of `video`; got {height} x {width}"
        )
