"""What pixels hold: colour, each clip with its own numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iivcl._checks import check_shape, common_dtype
from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_dtype, check_mean_std, check_video
from iivcl.augment._color_arithmetic import white_of
from iivcl.augment._engine import execute

__all__ = ["adjust_brightness", "adjust_contrast", "adjust_hue", "adjust_saturation"]
__all__ += ["normalize", "solarize", "to_float", "to_grayscale"]


def to_float(video: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 values 0..255 into floats within [0, 1]; floats keep their values.

    Args:
        video: (B, C, T, H, W) uint8 or floating.
        dtype: Floating dtype of the result.

    Returns:
        (B, C, T, H, W) in ``dtype``.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating, or ``dtype`` is not floating.
        ValueError: ``video`` has another rank.

    Example:
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 1, 3)).flatten()
        tensor([0.0000, 0.2000, 1.0000])
    """
    check_dtype(dtype)
    return execute((ops.ToFloat(dtype),), video)


def normalize(video: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute ``(video - mean) / std`` per channel.

    Args:
        video: (B, C, T, H, W); uint8 goes through :func:`to_float` first.
        mean: C numbers, on the scale [0, 1].
        std: C numbers above 0, on the scale [0, 1].

    Returns:
        (B, C, T, H, W), float32 for uint8 and the dtype of ``video`` otherwise.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: ``video`` has another rank or number of channels, or ``std`` is not above 0.

    Example:
        >>> video = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 1, 3)
        >>> normalize(video, mean=[0.5], std=[0.25]).flatten()
        tensor([-2.,  0.,  2.])
    """
    return execute((ops.Normalize(*check_mean_std(mean, std)),), video)


def adjust_brightness(video: Tensor, factor: Tensor) -> Tensor:
    """Multiply every clip by its factor and clamp to the range of the dtype.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats within [0, 1].
        factor: (B,) at least 0; 1 changes nothing, 0 is black.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded down.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape or a value is out of range; values are read on the CPU alone.

    Example:
        >>> adjust_brightness(torch.full((2, 3, 1, 1, 1), 0.5), torch.tensor([0.5, 3.0]))[:, 0]
        tensor([[[[0.2500]]],
        <BLANKLINE>
        <BLANKLINE>
                [[[1.0000]]]])
    """
    return execute((ops.Blend(factor, "black"),), video)


def adjust_contrast(video: Tensor, factor: Tensor) -> Tensor:
    """Blend every frame with its mean gray level.

    ``factor * frame + (1 - factor) * mean(gray(frame))``, clamped to the range of the dtype. Each
    frame has its own mean; the factor is the clip's.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats within [0, 1].
        factor: (B,) at least 0; 1 changes nothing, 0 is a plain gray.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded down.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape or a value is out of range; values are read on the CPU alone.

    Example:
        >>> video = torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 2)
        >>> adjust_contrast(video, torch.tensor([0.5])).flatten()
        tensor([0.3750, 0.6250])
    """
    return execute((ops.Blend(factor, "mean"),), video)


def adjust_saturation(video: Tensor, factor: Tensor) -> Tensor:
    """Blend every pixel with its gray level.

    ``factor * pixel + (1 - factor) * gray(pixel)``, clamped to the range of the dtype. Videos of
    one channel stay as they are.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats within [0, 1].
        factor: (B,) at least 0; 1 changes nothing, 0 is gray.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded down.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape or a value is out of range; values are read on the CPU alone.

    Example:
        >>> video = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
        >>> adjust_saturation(video, torch.tensor([0.0])).flatten()
        tensor([0.2989, 0.2989, 0.2989])
    """
    return execute((ops.Blend(factor, "gray"),), video)


def adjust_hue(video: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of every clip by its share of the colour circle.

    In HSV, ``h + shift`` modulo 1; saturation and value stay. Videos of one channel stay as they
    are.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats within [0, 1].
        shift: (B,) within [-0.5, 0.5]; 0 changes nothing, 1/3 turns red into green.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded down.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape or a value is out of range; values are read on the CPU alone.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
        >>> adjust_hue(red, torch.tensor([0.5])).flatten()
        tensor([0., 1., 1.])
    """
    return execute((ops.Hue(shift),), video)


def to_grayscale(video: Tensor, where: Tensor) -> Tensor:
    """Turn the chosen clips gray, keeping their channels.

    ``0.2989 red + 0.587 green + 0.114 blue``; videos of one channel stay as they are.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats.
        where: (B,) bool, which clips to turn gray.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``; uint8 is rounded down.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating, or ``where`` is not bool.
        ValueError: A shape is wrong.

    Example:
        >>> green = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1, 1)
        >>> to_grayscale(green, torch.tensor([True])).flatten()
        tensor([149, 149, 149], dtype=torch.uint8)
    """
    return execute((ops.Where(where, (ops.Gray(),)),), video)


def solarize(video: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels that are at or above the threshold of their clip.

    Args:
        video: (B, C, T, H, W), C 1 or 3, uint8 or floats within [0, 1].
        threshold: (B,) on the scale of ``video``: 0..255 for uint8, 0..1 for floats. ``inf``
            leaves a clip as it is.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``.

    Raises:
        TypeError: ``video`` is neither uint8 nor floating.
        ValueError: A shape or a value is out of range; values are read on the CPU alone.

    Example:
        >>> video = torch.tensor([0, 100, 128, 255], dtype=torch.uint8).view(1, 1, 1, 1, 4)
        >>> solarize(video, torch.tensor([128])).flatten()
        tensor([  0, 100, 127,   0], dtype=torch.uint8)
    """
    check_video(video)
    check_shape("threshold", threshold, "B", B=(len(video), "video"))
    share = threshold.to(common_dtype(threshold)) / white_of(video)
    return execute((ops.Solarize(share),), video)
