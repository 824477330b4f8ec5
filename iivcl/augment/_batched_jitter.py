"""The jitter of all clips at once: their orders differ, and no number is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._color_arithmetic import Parts, planes_of
from iivcl.augment._constants import kept
from iivcl.augment._separable import wide

__all__ = ["is_jitter", "jitter"]

_MEAN, _GRAY, _HUE = 1, 2, 3  # the places of these operations in a jitter


def is_jitter(op: Any) -> bool:
    """Whether this is what :class:`ColorJitter` describes."""
    programs = op.programs if isinstance(op, ops.InOrder) else ()
    kinds = [getattr(own[0], "other", type(own[0])) for own in programs if len(own) == 1]
    return kinds == ["black", "mean", "gray", ops.Hue]


def jitter(parts: Parts, op: ops.InOrder, where: Tensor | None, *, compiled: bool) -> Parts:
    """Blend with black, with the mean and with gray, and turn the hue, in the order of each clip.

    The blends are one operation with other numbers. Hue takes its turn once: up to three blends
    come before it and up to three after it, and those that do not, lose nothing of the pixels. So
    do all blends of the clips that stay as they are, whose hue is turned by 0.

    Args:
        parts: Of a gray or RGB video.
        op: What :func:`is_jitter` says it is.
        where: (B,) bool, the clips that are changed; by default all.
        compiled: Whether to compute in planes what a compiler joins into two passes.
    """
    (black,), (mean,), (gray,), (hue,) = op.programs
    dtype, white = wide(parts[0]), color.white_of(parts[0])
    # Six slots for blends, of which three come before hue: at which turn, and which blend.
    slot = kept(_range, 6, like=op.order)
    turn = slot - 2 * (slot >= 3)
    which = op.order[:, turn]  # (B, 6)
    hue_turn, mean_turn = _turn_of(_HUE, op.order), _turn_of(_MEAN, op.order)  # (B, 1)
    happens = torch.where(slot < 3, turn < hue_turn, turn > hue_turn)
    if where is not None:
        happens = happens & where.unsqueeze(1)
    if len(planes_of(parts)) == 1:
        happens = happens & (which != _GRAY)
    light, contrast, saturation = (op.factor.unsqueeze(1).to(dtype) for op in (black, mean, gray))
    is_mean, is_gray = which == _MEAN, which == _GRAY
    lost = happens * (1 - torch.where(is_mean, contrast, torch.where(is_gray, saturation, light)))
    shares = 1 - lost, lost * is_mean, lost * is_gray  # (B, 6)
    shift = hue.shift.to(dtype) if where is None else hue.shift.to(dtype) * where

    values, level = [part.to(dtype) for part in parts], None
    if compiled:
        # One pass ahead finds the mean gray level: what comes before its blend fuses with the
        # mean, and the whole chain, free of means, is a pass of its own.
        values = list(planes_of(values))
        early = turn < mean_turn
        before = [torch.where(early, share, none) for share, none in zip(shares, (1.0, 0.0, 0.0), strict=True)]
        early_shift = shift * (hue_turn < mean_turn).squeeze(1)
        before = _chain(values, before, early_shift, white, level=0.0)
        level = color.gray_level(before, white).mean((3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    changed = _chain(values, shares, shift, white, level)
    return [part.to(parts[0].dtype) for part in changed]


def _range(end: int, device: torch.device) -> Tensor:
    return torch.arange(end, device=device)


def _turn_of(kind: int, order: Tensor) -> Tensor:
    """At which turn (B, 1) one kind comes."""
    turns = kept(_range, order.shape[1], like=order)
    return ((order == kind) * turns).sum(dim=1, keepdim=True)


def _chain(
    parts: Parts, shares: Sequence[Tensor], shift: Tensor, white: int, level: Any
) -> Parts:
    """Three blends, hue, three blends.

    Args:
        parts: Of the video.
        shares: Three of (B, 6), of the pixels, of the mean gray level and of the gray levels.
        shift: (B,) of the hue.
        white: The largest value.
        level: Mean gray level for the blend with it, by default that of its turn.
    """

    def spread(numbers: Tensor) -> Tensor:
        # With a level for each frame, all numbers are made to depend on the frame: a compiler then
        # finds the same loops everywhere, and joins them.
        numbers = numbers[..., None, None, None, None]  # (..., B, 1, 1, 1, 1)
        return numbers if level is None else numbers + 0 * level

    blends = zip(*(spread(share.T) for share in shares), strict=True)
    for i, (keep, of_mean, of_gray) in enumerate(blends):
        if i == 3:
            parts = _rounded(_hue(parts, shift, spread(shift), white), white)
        gray = color.gray_level(parts, white)
        mean = gray.mean((3, 4), keepdim=True) if level is None else level
        rest = torch.addcmul(of_mean * mean, gray, of_gray)  # (B, 1, T, H, W)
        parts = _rounded(color.mixed(parts, keep, rest, white), white)
    return parts


def _hue(parts: Parts, shift: Tensor, spread_shift: Tensor, white: int) -> Parts:
    if len(parts) == 1 and parts[0].shape[1] == 3:
        return [color.hue_of_whole(parts[0], shift, white)]
    return color.hue(parts, spread_shift, white)


def _rounded(parts: Parts, white: int) -> Parts:
    """Round down what is a whole number, as uint8 does."""
    return parts if white == 1 else [part.floor() for part in parts]
