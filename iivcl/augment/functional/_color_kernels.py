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

    A third of the circle moves every channel one place on: red, green, blue. What is left is at
    most a sixth either way. Towards the channel ahead, a channel x then becomes ``highest -
    clamp(abs(behind - point) + ahead - x, 0, chroma)`` with ``point = lowest + 6 * shift *
    chroma``; this holds on every side of the colour wheel, so that no hue is ever computed, no
    case needs a mask and nothing is divided by a chroma of 0. The other way, the channels ahead
    and behind change places.
    """
    if values.shape[1] == 1:
        return
    if isinstance(shift, Tensor):
        own, ahead, behind, point = _neighbors_of_each(values, shift.flatten())
    else:
        own, ahead, behind, point = _neighbors(values, shift)
    lowest, highest = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    torch.sub(behind, torch.lerp(lowest, highest, point), out=values).abs_().add_(ahead).sub_(own)
    torch.sub(highest, values, out=values)
    torch.clamp(values, lowest, highest, out=values)
    if white == 255:  # equal bins of [0, 256) once they are rounded down
        values.mul_((256 - 1e-3) / 255)


def _neighbors(values: Tensor, shift: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Channels in place, those ahead and those behind, and the turn that is left in sixths."""
    thirds = round(3 * shift)
    left = 6 * shift - 2 * thirds
    first = -thirds - (left < 0)
    ring = torch.cat([values[:, i % 3].unsqueeze(1) for i in range(first, first + 5)], dim=1)
    low, middle, high = ring[:, 0:3], ring[:, 1:4], ring[:, 2:5]
    return (low, middle, high, left) if left >= 0 else (middle, low, high, -left)


def _neighbors_of_each(values: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a shift (B,) that differs from clip to clip, without reading it."""
    thirds = torch.round(3 * shift)
    left = 6 * shift - 2 * thirds
    step = torch.where(left < 0, -1, 1).unsqueeze(1)  # (B, 1)
    own = torch.arange(3, device=values.device) - thirds.long().unsqueeze(1)  # (B, 3)
    clips = torch.arange(len(values), device=values.device).unsqueeze(1)  # (B, 1)
    own, ahead, behind = (values[clips, place % 3] for place in (own, own + step, own - step))
    return own, ahead, behind, left.abs().to(values.dtype).view(-1, 1, 1, 1, 1)
