"""Arithmetic of colour, in place on floats and without checks.

``values`` is (B, C, T, H, W) with C 1 or 3, from 0 to ``white``; a factor is a (B, 1, 1, 1, 1)
tensor, or a Python number for all the clips. Everything happens in place, since on the CPU fresh
memory of the size of a clip costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor, "Tensor | float", int], object]

_TINY = 1e-12  # keeps 0 / chroma at 0 where a pixel is gray


def apply_(kernel: Kernel, video: Tensor, amount: Tensor | float) -> Tensor:
    """Run a kernel on ``video`` in place; uint8 goes through float32 and is rounded down."""
    values = video.to(torch.promote_types(video.dtype, torch.float32))
    kernel(values, amount, white_of(video))
    return video if values is video else video.copy_(values)


def white_of(video: Tensor) -> int:
    """The largest value of the dtype of ``video``."""
    return 1 if video.is_floating_point() else 255


def brightness_(values: Tensor, factor: Tensor | float, white: int) -> None:
    """Compute ``factor * values``, clamped."""
    values.mul_(factor).clamp_(0, white)


def contrast_(values: Tensor, factor: Tensor | float, white: int) -> None:
    """Blend every frame with its mean gray level."""
    blend_(values, gray_level(values, white).mean(dim=(1, 3, 4), keepdim=True), factor, white)


def saturation_(values: Tensor, factor: Tensor | float, white: int) -> None:
    """Blend every pixel with its gray level."""
    if values.shape[1] == 3:
        blend_(values, gray_level(values, white), factor, white)


def blend_(values: Tensor, other: Tensor, factor: Tensor | float, white: int) -> None:
    """Compute ``factor * values + (1 - factor) * other``, clamped."""
    values.mul_(factor).add_(other * (1 - factor)).clamp_(0, white)


def gray_level(values: Tensor, white: int) -> Tensor:
    """Gray level (B, 1, T, H, W), a whole number where the video is uint8."""
    if values.shape[1] == 1:
        return values
    red, green, blue = values.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return gray if white == 1 else gray.floor_()


def hue_(values: Tensor, shift: Tensor | float, white: int) -> None:
    """Turn the hue by a share of the circle, keeping saturation and value of HSV.

    With chroma = max - min and every channel scaled to (channel - min) / chroma, the hue in sixths
    of the circle is ``1 - red + green + blue`` on the green side of red and its negative on the
    blue side. Back from a hue h, each channel is a clipped triangle of h. So no case needs a mask:
    on the CPU a comparison and a choice cost more than all the arithmetic.
    """
    if values.shape[1] == 1:
        return
    red, green, blue = values.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    hue = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp(min=_TINY)).add_(1)
    hue = hue.copysign_(green - blue).add_(6 * shift)
    hue = hue.sub_((hue / 6).floor_(), alpha=6)  # [0, 6]
    red.copy_((hue - 3).abs_().sub_(1))
    green.copy_((hue - 2).abs_().neg_().add_(2))
    blue.copy_((hue - 4).abs_().neg_().add_(2))
    values.clamp_(0, 1).mul_(chroma).add_(lowest)
    if white == 255:  # equal bins of [0, 256) once they are rounded down
        values.mul_((256 - 1e-3) / 255)
