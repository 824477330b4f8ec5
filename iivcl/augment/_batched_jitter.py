"""The jitter of all clips at once: their orders differ, and no number is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iivcl._checks import common_dtype
from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._color_arithmetic import Parts, planes_of
from iivcl.augment._constants import kept, row

__all__ = ["is_jitter", "jitter"]

_MEAN, _GRAY, _HUE = 1, 2, 3  # the places of these operations in a jitter


def is_jitter(op: Any, parts: Parts) -> bool:
    """Whether this is what :class:`ColorJitter` describes, and the video gray or RGB."""
    programs = op.programs if isinstance(op, ops.InOrder) else ()
    kinds = [getattr(own[0], "other", type(own[0])) for own in programs if len(own) == 1]
    return kinds == ["black", "mean", "gray", ops.Hue] and len(planes_of(parts)) in (1, 3)


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
    dtype, white = common_dtype(parts[0]), color.white_of(parts[0])
    # Six slots for blends, of which three come before hue: at which turn, and which blend.
    turn, hue_turn = row((0, 1, 2, 1, 2, 3), op.order), _turn_of(_HUE, op.order)  # (6,), (B, 1)
    which = op.order[:, turn]  # (B, 6)
    happens = torch.cat([turn[:3] < hue_turn, turn[3:] > hue_turn], dim=1)
    if where is not None:
        happens = happens & where.unsqueeze(1)
    if len(planes_of(parts)) == 1:
        happens = happens & (which != _GRAY)
    light, contrast, saturation = (op.factor.unsqueeze(1).to(dtype) for op in (black, mean, gray))
    is_mean, is_gray = which == _MEAN, which == _GRAY
    lost = happens * (1 - torch.where(is_mean, contrast, torch.where(is_gray, saturation, light)))
    of_unit = lost * _unit(parts, white)
    shares = 1 - lost, of_unit * is_mean, of_unit * is_gray  # (B, 6)
    shift = hue.shift if where is None else hue.shift * where
    shift = color.per_clip(shift, lost)

    values = [part.to(dtype) for part in parts]
    if not compiled:
        changed = _chain(values, _blends(shares), shift, white)
    else:
        # One pass ahead finds the mean gray level: what comes before its blend fuses with the
        # mean, and the whole chain, free of means, is a pass of its own. No more than two blends
        # come before that with the mean on either side of hue.
        mean_turn = _turn_of(_MEAN, op.order)
        values, early = list(planes_of(values)), turn < mean_turn
        neutral = zip(shares, (1.0, 0.0, 0.0), strict=True)
        early_blends = _blends([torch.where(early, share, none) for share, none in neutral])
        early_shift = shift * color.per_clip(hue_turn < mean_turn, shift)
        before = _chain(values, early_blends[:2] + early_blends[3:5], early_shift, white, level=0.0)
        level = _gray_level(before, white).mean((3, 4), keepdim=True)  # (B, 1, T, 1, 1)
        # All numbers are made to depend on the frame, as the level does: a compiler then finds the
        # same loops everywhere, and joins them.
        blends, shift = _blends(shares, 0 * level), shift + 0 * level
        changed = _chain(values, blends, shift, white, level)
    return [part.to(parts[0].dtype) for part in changed]


def _turn_of(kind: int, order: Tensor) -> Tensor:
    """At which turn (B, 1) one kind comes."""
    turns = kept(torch.arange, 4, like=order)
    return ((order == kind) * turns).sum(dim=1, keepdim=True)


Blends = list[tuple[Tensor, Tensor, Tensor]]
"""Shares of the pixels, of the mean gray level and of the gray levels, (B, 1, 1, 1, 1) each."""


def _blends(shares: Sequence[Tensor], zero: Tensor | float = 0.0) -> Blends:
    """Take shares (B, 6) apart into six blends, in the shape that a sum with ``zero`` has."""
    spread = [share.T[..., None, None, None, None] for share in shares]  # (6, B, 1, 1, 1, 1)
    if isinstance(zero, Tensor):
        spread = [share + zero for share in spread]
    return list(zip(*(share.unbind(0) for share in spread), strict=True))


def _chain(parts: Parts, blends: Blends, shift: Tensor, white: int, level: Any = None) -> Parts:
    """Half of the blends, hue, and the other half.

    ``level`` is the mean gray level for the blend with it, by default that of its turn.
    """
    for i, (keep, of_mean, of_gray) in enumerate(blends):
        if i == len(blends) // 2:
            is_whole = len(parts) == 1 and parts[0].shape[1] == 3
            turned = color.hue_of_whole if is_whole else color.hue
            parts = _rounded(turned(parts, shift, white), white)
        gray = _gray_level(parts, white)
        mean = gray.mean((3, 4), keepdim=True) if level is None else level
        rest = torch.addcmul(of_mean * mean, gray, of_gray)  # (B, 1, T, H, W)
        parts = _rounded(color.mixed(parts, keep, rest, white), white)
    return parts


def _gray_level(parts: Parts, white: int) -> Tensor:
    """Gray level in units of the one that red alone has, which saves a pass over red."""
    planes, red = planes_of(parts), _unit(parts, white)
    if red == 1:
        return color.gray_level(planes, white)
    _, green, blue = color.GRAY
    return planes[0].add(planes[1], alpha=green / red).add_(planes[2], alpha=blue / red)


def _unit(parts: Parts, white: int) -> float:
    return color.GRAY[0] if white == 1 and len(planes_of(parts)) == 3 else 1.0


def _rounded(parts: Parts, white: int) -> Parts:
    """Round down what is a whole number, as uint8 does."""
    return parts if white == 1 else [part.floor() for part in parts]
