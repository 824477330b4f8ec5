"""Arithmetic of colour, on floats and without checks: all the engines compute with it.

A video comes in parts (B, C, T, H, W): whole, or in planes of one channel, one or three of them.
Pixels are from 0 to ``white``. Numbers per clip are (B, 1, 1, 1, 1), or Python's where there is one
clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iivcl.augment._constants import constant, kept

__all__ = ["GRAY", "Parts", "blend", "gray_level", "hue", "hue_of_whole", "mixed", "per_clip"]
__all__ += ["planes_of", "weighted_sum", "white_of"]

Parts = Sequence[Tensor]
"""A video (B, C, T, H, W) in one part or several along its channels."""

GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision


def white_of(video: Tensor) -> int:
    """The largest value of a pixel."""
    return 1 if video.is_floating_point() else 255


def per_clip(value: Tensor, like: Tensor) -> Tensor:
    """Shape one number per clip (B,) so that it multiplies planes."""
    return value.to(like.dtype).view(-1, 1, 1, 1, 1)


def planes_of(parts: Parts) -> Parts:
    """Take a video apart into its channels, (B, 1, T, H, W) each."""
    return [plane for part in parts for plane in torch.split(part, 1, dim=1)]


def blend(parts: Parts, factor: Tensor, other: str, white: int) -> Parts:
    """Compute ``factor * part + (1 - factor) * other``, clamped; ``other`` as in a program."""
    if other == "black":
        return [(factor * part).clamp_(0, white) for part in parts]
    level = gray_level(parts, white)
    level = level if other == "gray" else level.mean((3, 4), keepdim=True)
    return mixed(parts, factor, (1 - factor) * level, white)


def mixed(parts: Parts, keep: Tensor, rest: Tensor, white: int) -> Parts:
    """Compute ``keep * part + rest``, clamped."""
    return [torch.addcmul(rest, part, keep).clamp_(0, white) for part in parts]


def gray_level(parts: Parts, white: int) -> Tensor:
    """Gray level of the pixels (B, 1, T, H, W), a whole number where the video is uint8."""
    planes = planes_of(parts)
    if len(planes) == 1:
        return planes[0]
    level = weighted_sum(planes, GRAY)
    return level if white == 1 else level.floor()


def weighted_sum(planes: Parts, weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """Sum up weighted planes, in ``out`` or fresh memory."""
    total = torch.mul(planes[0], weights[0], out=out)
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        total.add_(plane, alpha=weight)
    return total


def hue(
    planes: Parts, shift: Any, white: int, memory: Sequence[Tensor | None] = (None,) * 7
) -> Parts:
    """Turn the hue by a share of the circle, keeping saturation and value of HSV.

    A third of the circle moves every channel one place on: red, green, blue. What is left is at
    most a sixth either way. Towards the channel ahead, a channel then becomes ``own - ahead -
    abs(behind - point) + highest``, clamped to [lowest, highest], where ``point`` is ``6 * shift``
    of the way from lowest to highest. This holds on every side of the colour wheel, so that no
    hue is ever computed, no case needs a mask and nothing is divided by a chroma of 0. The other
    way, the channels ahead and behind change places.

    A tensor for ``shift`` chooses between channels by masks, and is not read.

    Args:
        planes: One or three.
        shift: Within [-0.5, 0.5].
        white: The largest value.
        memory: Three planes for the results and four to compute in, by default fresh ones.
    """
    if len(planes) == 1:
        return planes
    several = isinstance(shift, Tensor)
    pick: Any = torch.where if several else _pick
    floor: Any = torch.floor if several else math.floor
    thirds = floor(3 * shift + 0.5)
    left, places = 6 * shift - 2 * thirds, thirds % 3
    moved = [pick(places == 1, planes[i - 1], planes[i - 2]) for i in range(3)]
    red, green, blue = own = [pick(places == 0, planes[i], moved[i]) for i in range(3)]
    *outs, low, high, between, other = memory
    lowest = torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    highest = torch.maximum(torch.maximum(red, green, out=high), blue, out=high)
    point = torch.lerp(lowest, highest, abs(left), out=between)
    turned = []
    for i, out in enumerate(outs):
        ahead = pick(left < 0, own[i - 1], own[i - 2])
        behind = pick(left < 0, own[i - 2], own[i - 1])
        distance = torch.sub(behind, point, out=other).abs_()
        value = torch.sub(own[i], ahead, out=out).sub_(distance).add_(highest)
        turned.append(torch.clamp(value, lowest, highest, out=out))
    # Of uint8, equal bins of [0, 256) once they are rounded down.
    return turned if white == 1 else [plane * ((256 - 1e-3) / 255) for plane in turned]


def hue_of_whole(parts: Parts, shift: Tensor, white: int) -> Parts:
    """Compute :func:`hue` of a whole video (B, 3, T, H, W) in few operations.

    The channels of every clip are put into the order in which its hue moves, so that for each of
    them the next one is ahead and the one after it is behind; afterwards they go back.
    """
    (video,), sixths = parts, 6 * shift.flatten()  # (B,)
    sixth = sixths.floor()
    row = sixth.long() % 6
    channels = constant(_CHANNELS, row)[row]  # (B, 8)
    first = kept(torch.arange, 0, 3 * len(video), 3, like=video)  # (B,), of each clip
    channels = channels + first.unsqueeze(1)
    moving = video.flatten(0, 1)[channels[:, :5]].to(video.dtype)
    own, ahead, behind = moving[:, :3], moving[:, 1:4], moving[:, 2:]
    lowest, highest = own.amin(1, keepdim=True), own.amax(1, keepdim=True)
    share = (sixths - sixth - sixth % 2).abs_()  # from the nearest primary colour
    point = torch.lerp(lowest, highest, per_clip(share, video))
    turned = (own - ahead).sub_((behind - point).abs_()).add_(highest)
    torch.clamp(turned, lowest, highest, out=turned)
    turned = turned.flatten(0, 1)[channels[:, 5:]]
    return [turned if white == 1 else turned.mul_((256 - 1e-3) / 255)]


def _channels(sixth: int) -> tuple[int, ...]:
    """Five channels in the order in which a hue moves, and where three of them stand in it."""
    step, thirds = 1 - 2 * (sixth % 2), (sixth + 1) // 2
    return *((step * i - thirds) % 3 for i in range(5)), *(step * i % 3 for i in range(3))


_CHANNELS = tuple(_channels(sixth) for sixth in range(6))


def _pick(first: bool, one: Tensor, other: Tensor) -> Tensor:
    return one if first else other
