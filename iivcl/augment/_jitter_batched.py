"""Colour jitter of a whole batch at once, whatever the order of each clip is.

Amounts and orders are never read on the host. A plane holds one channel of all clips, (B, 1, T,
H, W): every step is arithmetic on single pixels, and a compiler fuses a chain of them into one
pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from iivcl.augment.functional import _color_kernels as kernels

__all__ = ["jitter"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def jitter(planes: Sequence[Tensor], amounts: Tensor, order: Tensor) -> list[Tensor]:
    """Apply brightness, contrast, saturation and hue to every clip in an order of its own.

    Brightness, contrast and saturation blend a frame with black, with its mean gray level or with
    its gray levels, and so are one operation with other numbers. Hue takes its turn once: up to
    three blends come before it and up to three after it, and those that do not keep all.

    Args:
        planes: 1 or 3 of (B, 1, T, H, W), uint8 or floats within [0, 1].
        amounts: (B, 4) factors of the first three operations and shift of the hue.
        order: (B, 4) int64, a permutation of the four operations per clip.

    Returns:
        As many planes in their dtype; uint8 is rounded down after every operation.
    """
    white, dtype = kernels.white_of(planes[0]), planes[0].dtype
    values = [plane.to(torch.promote_types(dtype, torch.float32)) for plane in planes]
    turns = order.argsort(dim=1)  # (B, 4), at which turn each operation comes
    hue_turn, contrast_turn = turns[:, HUE:], turns[:, CONTRAST : CONTRAST + 1]  # (B, 1)

    blends = torch.cat([order[:, :3], order[:, 1:]], dim=1)  # (B, 6), which operation
    turn = torch.arange(3, device=order.device)
    turn = torch.cat([turn, turn + 1])  # (6,), and when
    happens = torch.cat([turn[:3] < hue_turn, turn[3:] > hue_turn], dim=1)
    if len(planes) == 1:
        happens = happens & (blends != SATURATION)
    keep = torch.where(happens, amounts.gather(1, blends), 1.0)

    chain = partial(_chain, values, blends=blends, white=white)
    level = None
    if torch.compiler.is_compiling():
        # One pass ahead finds the mean gray level for contrast: what comes before contrast fuses
        # with the mean, and the whole chain, free of means, is a pass of its own.
        early = torch.where(turn < contrast_turn, keep, 1.0)
        early_shift = torch.where(hue_turn < contrast_turn, amounts[:, HUE:], 0.0)
        before = chain(keep=early, shift=early_shift, level=0.0)  # in which no contrast happens
        level = kernels.gray_of(before, white).mean((3, 4), keepdim=True)
    changed = chain(keep=keep, shift=amounts[:, HUE:], level=level)
    return [plane.to(dtype) for plane in changed]


def _chain(
    planes: kernels.Planes,
    *,
    blends: Tensor,
    keep: Tensor,
    shift: Tensor,
    white: int,
    level: Tensor | float | None,
) -> kernels.Planes:
    """Three blends, hue, three blends; ``keep`` (B, 6) is 1 where a blend does nothing.

    ``level`` (B, 1, T, 1, 1) is the mean gray level for contrast, by default that of its turn.
    """
    rest = 1 - keep
    of_gray, of_level = rest * (blends == SATURATION), rest * (blends == CONTRAST)
    numbers = torch.stack([keep, of_gray, of_level]).to(planes[0].dtype)  # (3, B, 6)
    for i, (own, of_gray, of_level) in enumerate(numbers.view(3, -1, 6, 1, 1, 1, 1).unbind(2)):
        if i == 3 and len(planes) == 3:
            planes = _rounded(kernels.hue_of(planes, shift.view(-1, 1, 1, 1, 1), white), white)
        gray = kernels.gray_of(planes, white)
        mean = gray.mean((3, 4), keepdim=True) if level is None else level
        other = of_gray * gray + of_level * mean  # (B, 1, T, H, W)
        blended = [(own * plane).add_(other).clamp_(0, white) for plane in planes]
        planes = _rounded(blended, white)
    return planes


def _rounded(planes: kernels.Planes, white: int) -> kernels.Planes:
    """Round down what is a whole number, as uint8 does."""
    return planes if white == 1 else [plane.floor() for plane in planes]
