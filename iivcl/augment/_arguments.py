"""Checks of what users pass: videos, numbers per clip, sizes, ranges.

Values are looked at on the CPU alone and never while a graph is being traced: on an accelerator
that look would make the host wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from iivcl._checks import (
    check_at_least,
    check_shape,
    check_within,
    is_integer,
    is_number,
    layout_hint,
)

__all__ = ["check_boxes", "check_channels", "check_dtype", "check_kernel_size", "check_mean_std"]
__all__ += ["check_numbers", "check_probability", "check_range", "check_reach", "check_size"]
__all__ += ["check_statistics", "check_unit_range", "check_video", "values_are_free"]

_ROUNDING = 1e-3  # resampling and half precision may leave [0, 1] by this much


def values_are_free(tensor: Tensor) -> bool:
    """Whether Python may read the values of ``tensor`` without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_video(video: Tensor) -> None:
    """Check that ``video`` is (B, C, T, H, W), uint8 or floating."""
    check_shape("video", video, "B C T H W")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise TypeError(f"`video` must be uint8 or floating-point; got {video.dtype}")


def check_channels(video: Tensor) -> None:
    """Check a video that is gray or RGB."""
    check_video(video)
    if video.shape[1] not in (1, 3):
        raise ValueError(
            f"`video` must have 1 or 3 channels; got {video.shape[1]} in shape "
            f"{tuple(video.shape)}, read as (B, C, T, H, W){layout_hint(video.shape, (1, 3))}"
        )


def check_statistics(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that there is one mean and standard deviation per channel."""
    check_video(video)
    if not len(mean) == len(std) == video.shape[1]:
        raise ValueError(
            f"`mean` and `std` must have one number for each of the {video.shape[1]} channels of "
            f"`video`; got {len(mean)} and {len(std)}, and `video` of shape {tuple(video.shape)}, "
            f"read as (B, C, T, H, W){layout_hint(video.shape, (len(mean),))}"
        )


def check_mean_std(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return statistics as floats, or say what is wrong with them by themselves."""
    for name, numbers in {"mean": mean, "std": std}.items():
        if not (hasattr(numbers, "__len__") and all(map(is_number, numbers))):
            raise TypeError(f"`{name}` must be numbers, one per channel; got {numbers!r}")
    if len(mean) != len(std) or not (all(map(math.isfinite, mean)) and all(s > 0 for s in std)):
        raise ValueError(
            "`mean` and `std` must have one finite number per channel, and `std` must be above 0; "
            f"got {tuple(mean)} and {tuple(std)}"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def check_unit_range(video: Tensor) -> None:
    """Check a gray or RGB video whose floats must be within [0, 1]."""
    check_channels(video)
    if video.is_floating_point() and video.numel() and values_are_free(video):
        # torch 2.11 has no forward derivative of this.
        values = forward_ad.unpack_dual(video).primal  # type: ignore[no-untyped-call]
        low, high = (bound.item() for bound in torch.aminmax(values))
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"floating-point `video` must be within [0, 1]; got [{low:.4g}, {high:.4g}]. "
                "Normalize after the colour operations, and turn uint8 into floats with `to_float`"
            )


def check_numbers(
    name: str, value: Tensor, num_clips: int, low: float = -torch.inf, high: float = torch.inf
) -> None:
    """Check one number per clip."""
    check_shape(name, value, "B", B=(num_clips, "video"))
    if values_are_free(value) and not all(low <= number <= high for number in value.tolist()):
        raise ValueError(f"`{name}` must be within [{low}, {high}]; got {value.tolist()}")


def check_boxes(boxes: Tensor, height: int, width: int) -> None:
    """Check that boxes are whole pixels within the frame."""
    if boxes.is_floating_point():
        raise TypeError(f"`boxes` must be an integer tensor of pixels; got {boxes.dtype}")
    for top, left, h, w in boxes.tolist() if values_are_free(boxes) else ():
        if not (0 <= top < top + h <= height and 0 <= left < left + w <= width):
            raise ValueError(
                f"`boxes` must lie within the frame of {height} x {width} pixels; "
                f"got top {top}, left {left}, height {h}, width {w}"
            )


def check_dtype(dtype: torch.dtype) -> None:
    """Check the dtype of a result within [0, 1]."""
    if not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a floating-point dtype; got {dtype}")


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of ``size``, or say what is wrong with it."""
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(map(is_integer, pair)):
        raise TypeError(f"`size` must be an int or two of them, height and width; got {size!r}")
    height, width = pair
    if min(height, width) < 1:
        raise ValueError(f"`size` must be at least 1 pixel; got {size}")
    return int(height), int(width)


def check_kernel_size(kernel_size: int) -> None:
    """Check that a kernel has a middle tap."""
    check_at_least(1, kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"`kernel_size` must be odd; got {kernel_size}")


def check_reach(kernel_size: int, height: int, width: int) -> None:
    """Check a kernel whose ends are reflected at the border of the frame."""
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"`kernel_size` {kernel_size} reaches {kernel_size // 2} pixels, which must be less "
            f"than the height and width of `video`; got {height} x {width}"
        )


def check_probability(p: float) -> float:
    """Return ``p``, or say that it is no probability."""
    check_within(0, 1, p=p)
    return p


def check_range(
    name: str, bounds: tuple[float, float], low: float, high: float = float("inf")
) -> tuple[float, float]:
    """Return ``bounds`` as two floats, or say that they are reversed or out of [low, high]."""
    if not (isinstance(bounds, (tuple, list)) and all(map(is_number, bounds)) and len(bounds) == 2):
        raise TypeError(f"`{name}` must be two numbers, low and high; got {bounds!r}")
    first, last = (float(bound) for bound in bounds)
    if not low <= first <= last <= high or math.isinf(last):
        end = "< inf" if math.isinf(high) else f"<= {high}"
        raise ValueError(
            f"`{name}` must be (low, high) with {low} <= low <= high {end}; got {bounds}"
        )
    return first, last
