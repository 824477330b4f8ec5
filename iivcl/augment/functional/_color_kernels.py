"""Arithmetic of colour, on floats and without checks.

``values`` is (B, C, T, H, W) with C 1 or 3, from 0 to ``white``; a factor is a (B, 1, 1, 1, 1)
tensor, or a Python number for all the clips. All but hue happens in place, since on the CPU fresh
memory of the size of a clip costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Kernel = Callable[[Tensor, "Tensor | float", int], Tensor]

GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision


def apply_(kernel: Kernel, video: Tensor, amount: Tensor | float) -> Tensor:
    """Run a kernel on ``video`` in place; uint8 goes through float32 and is rounded down."""
    values = video.to(torch.promote_types(video.dtype, torch.float32))
    values = kernel(values, amount, white_of(video))
    return video if values is video else video.copy_(values)


def white_of(video: Tensor) -> int:
    """The largest value of the dtype of ``video``."""
    return 1 if video.is_floating_point() else 255


def brightness_(values: Tensor, factor: Tensor | float, white: int) -> Tensor:
    """Compute ``factor * values``, clamped."""
    return values.mul_(factor).clamp_(0, white)


def contrast_(values: Tensor, factor: Tensor | float, white: int) -> Tensor:
    """Blend every frame with its mean gray level."""
    mean = gray_level(values, white).mean(dim=(1, 3, 4), keepdim=True)
    return blend_(values, mean, factor, white)


def saturation_(values: Tensor, factor: Tensor | float, white: int) -> Tensor:
    """Blend every pixel with its gray level."""
    if values.shape[1] == 1:
        return values
    return blend_(values, gray_level(values, white), factor, white)


def blend_(values: Tensor, other: Tensor, factor: Tensor | float, white: int) -> Tensor:
    """Compute ``factor * values + (1 - factor) * other``, clamped."""
    return values.mul_(factor).add_(other * (1 - factor)).clamp_(0, white)


def gray_level(values: Tensor, white: int) -> Tensor:
    """Gray level (B, 1, T, H, W), a whole number where the video is uint8."""
    if values.shape[1] == 1:
        return values
    red, green, blue = values.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    gray = red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])
    return gray if white == 1 else gray.floor_()


def hue(
    values: Tensor,
    shift: Tensor | float,
    white: int,
    *,
    out: Tensor | None = None,
    planes: Sequence[Tensor | None] = (None, None, None, None),
) -> Tensor:
    """Turn the hue by a share of the circle, keeping saturation and value of HSV.

    A third of the circle moves every channel one place on: red, green, blue. What is left is at
    most a sixth either way. Towards the channel ahead, a channel x then becomes ``x - ahead -
    abs(behind - point) + highest``, clamped to [lowest, highest], where ``point`` is ``6 * shift``
    of the way from lowest to highest. This holds on every side of the colour wheel, so that no
    hue is ever computed, no case needs a mask and nothing is divided by a chroma of 0. The other
    way, the channels ahead and behind change places.

    The result goes to ``out``, and what it takes to ``planes`` (B, 1, T, H, W), or to fresh memory.
    """
    if values.shape[1] == 1:
        return values
    if isinstance(shift, Tensor):
        own, ahead, behind, sixths = _neighbors_of_each(values, shift)
    else:
        own, ahead, behind, sixths = _neighbors(values, shift)
    lowest = torch.amin(values, 1, keepdim=True, out=planes[0])
    highest = torch.amax(values, 1, keepdim=True, out=planes[1])
    point = torch.lerp(lowest, highest, sixths, out=planes[2])
    turned = torch.empty_like(values) if out is None else out
    for i in range(3):
        distance = torch.sub(behind[i], point, out=planes[3]).abs_()
        channel = turned[:, i : i + 1].copy_(own[i])
        channel.sub_(ahead[i]).sub_(distance).add_(highest).clamp_(lowest, highest)
    if white == 255:  # equal bins of [0, 256) once they are rounded down
        turned.mul_((256 - 1e-3) / 255)
    return turned


Channels = list[Tensor]  # three of (B, 1, T, H, W)


def _neighbors(values: Tensor, shift: float) -> tuple[Channels, Channels, Channels, Tensor | float]:
    """Channels in place, those ahead and those behind, and the turn that is left in sixths."""
    thirds = round(3 * shift)
    left = 6 * shift - 2 * thirds
    step = -1 if left < 0 else 1
    places = [[(i - thirds + j) % 3 for i in range(3)] for j in (0, step, -step)]
    own, ahead, behind = ([values[:, i : i + 1] for i in place] for place in places)
    return own, ahead, behind, abs(left)


def _neighbors_of_each(
    values: Tensor, shift: Tensor
) -> tuple[Channels, Channels, Channels, Tensor | float]:
    """The same for a shift (B, 1, 1, 1, 1) that differs from clip to clip, without reading it."""
    thirds = torch.round(3 * shift)
    left = 6 * shift - 2 * thirds
    step = torch.where(left < 0, -1, 1).view(-1, 1)  # (B, 1)
    place = torch.arange(3, device=values.device) - thirds.long().view(-1, 1)  # (B, 3)
    clips = torch.arange(len(values), device=values.device).unsqueeze(1)  # (B, 1)
    places = (place, place + step, place - step)
    own, ahead, behind = (list(values[clips, place % 3].unsqueeze(2).unbind(1)) for place in places)
    return own, ahead, behind, left.abs().to(values.dtype)
