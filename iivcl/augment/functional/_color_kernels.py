"""Arithmetic of colour, on floats and without checks.

``values`` is (B, C, T, H, W) with C 1 or 3, from 0 to ``white``; a factor is a (B, 1, 1, 1, 1)
tensor, or a Python number for all the clips. All but hue happens in place, since on the CPU fresh
memory of the size of a clip costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[[Tensor, "Tensor | float", int], Tensor]
Planes = Sequence[Tensor]  # one per channel, 1 or 3, all of one shape

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
    return gray_of(values.unsqueeze(2).unbind(1), white)


def gray_of(planes: Planes, white: int) -> Tensor:
    """Gray level of the pixels of one or three planes."""
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    gray = red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])
    return gray if white == 1 else gray.floor_()


def hue(
    values: Tensor,
    shift: Tensor | float,
    white: int,
    *,
    out: Tensor | None = None,
    scratch: Sequence[Tensor | None] = (None, None, None, None),
) -> Tensor:
    """Turn the hue by a share of the circle, keeping saturation and value of HSV.

    A third of the circle moves every channel one place on: red, green, blue. What is left is at
    most a sixth either way. Towards the channel ahead, a channel x then becomes ``x - ahead -
    abs(behind - point) + highest``, clamped to [lowest, highest], where ``point`` is ``6 * shift``
    of the way from lowest to highest. This holds on every side of the colour wheel, so that no
    hue is ever computed, no case needs a mask and nothing is divided by a chroma of 0. The other
    way, the channels ahead and behind change places.

    With a number for ``shift``, the result goes to ``out`` and what it takes to ``scratch``
    (B, 1, T, H, W), or to fresh memory.
    """
    planes = values.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    if len(planes) == 1:
        return values
    if isinstance(shift, Tensor):
        return torch.cat(hue_of(planes, shift, white), 1)
    thirds, left = _split_turn(shift)
    step = -1 if left < 0 else 1
    own, ahead, behind = (
        [planes[(i - thirds + j) % 3] for i in range(3)] for j in (0, step, -step)
    )
    lowest = torch.amin(values, 1, keepdim=True, out=scratch[0])
    highest = torch.amax(values, 1, keepdim=True, out=scratch[1])
    point = torch.lerp(lowest, highest, abs(left), out=scratch[2])
    outs: Sequence[Tensor | None] = [None] * 3 if out is None else out.unsqueeze(2).unbind(1)
    turned = [
        _turn(*of_one, point, lowest, highest, white, scratch[3])
        for of_one in zip(outs, own, ahead, behind, strict=True)
    ]
    return torch.cat(turned, 1) if out is None else out


def hue_of(planes: Planes, shift: Tensor, white: int) -> list[Tensor]:
    """Compute what :func:`hue` does, for three planes and a shift that differs between clips.

    The shift, which broadcasts with the planes, chooses between them by masks and is not read.
    """
    thirds, left = _split_turn(shift)
    left, places = left.to(planes[0].dtype), thirds % 3
    moved = [torch.where(places == 1, planes[i - 1], planes[i - 2]) for i in range(3)]
    own = [torch.where(places == 0, planes[i], moved[i]) for i in range(3)]
    lowest = torch.minimum(torch.minimum(own[0], own[1]), own[2])
    highest = torch.maximum(torch.maximum(own[0], own[1]), own[2])
    point = torch.lerp(lowest, highest, left.abs())
    turned = []
    for i in range(3):
        ahead = torch.where(left < 0, own[i - 1], own[i - 2])
        behind = torch.where(left < 0, own[i - 2], own[i - 1])
        turned.append(_turn(None, own[i], ahead, behind, point, lowest, highest, white))
    return turned


def _split_turn(shift: Any) -> Any:
    """Whole thirds of the circle, and what is left of a turn, in sixths."""
    thirds = torch.round(3 * shift) if isinstance(shift, Tensor) else round(3 * shift)
    return thirds, 6 * shift - 2 * thirds


def _turn(
    out: Tensor | None,
    own: Tensor,
    ahead: Tensor,
    behind: Tensor,
    point: Tensor,
    lowest: Tensor,
    highest: Tensor,
    white: int,
    scratch: Tensor | None = None,
) -> Tensor:
    """Turn one channel; see :func:`hue` for the names."""
    distance = torch.sub(behind, point, out=scratch).abs_()
    turned = torch.sub(own, ahead, out=out).sub_(distance).add_(highest).clamp_(lowest, highest)
    # Of uint8, equal bins of [0, 256) once they are rounded down.
    return turned if white == 1 else turned.mul_((256 - 1e-3) / 255)
