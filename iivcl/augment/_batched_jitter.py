"""The jitter of all clips at once: their orders differ, and no number is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._color_arithmetic import Parts, planes_of
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
    dtype = wide(parts[0])
    numbers = torch.stack([black.factor, mean.factor, gray.factor, hue.shift], dim=1).to(dtype)
    turn = torch.arange(4, device=op.order.device)
    hue_turn = _turn_of(_HUE, op.order, turn)  # (B, 1)
    happens = torch.cat([(turn < hue_turn)[:, :3], (turn > hue_turn)[:, 1:]], dim=1)  # (B, 6)
    which, shift = _slots(op.order), numbers[:, _HUE:]
    if where is not None:
        happens, shift = happens & where.unsqueeze(1), shift * where.unsqueeze(1)
    if len(planes_of(parts)) == 1:
        happens = happens & (which != _GRAY)
    lost = (1 - numbers.gather(1, which)) * happens  # (B, 6)

    white = color.white_of(parts[0])
    values, level = [part.to(dtype) for part in parts], None
    if compiled:
        # One pass ahead finds the mean gray level: what comes before its blend fuses with the
        # mean, and the whole chain, free of means, is a pass of its own.
        values = list(planes_of(values))
        mean_turn = _turn_of(_MEAN, op.order, turn)
        early = lost * _slots(turn < mean_turn)
        before = _chain(values, which, early, shift * (hue_turn < mean_turn), white, level=0.0)
        level = color.gray_level(before, white).mean((3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    changed = _chain(values, which, lost, shift, white, level)
    return [part.to(parts[0].dtype) for part in changed]


def _turn_of(kind: int, order: Tensor, turn: Tensor) -> Tensor:
    """At which turn (B, 1) one kind comes."""
    return ((order == kind) * turn).sum(dim=1, keepdim=True)


def _slots(turns: Tensor) -> Tensor:
    """From four turns (B, 4) the three that may come before hue, and the three after it."""
    return torch.cat([turns[:, :3], turns[:, 1:]], dim=1)


def _chain(
    parts: Parts, which: Tensor, lost: Tensor, shift: Tensor, white: int, level: Any
) -> Parts:
    """Three blends, hue, three blends, each of which loses a share (B, 6) of the pixels.

    ``level`` is the mean gray level for the blend with it, by default that of its turn.
    """

    def spread(numbers: Tensor) -> tuple[Tensor, ...]:
        # With a level for each frame, all numbers are made to depend on the frame: a compiler then
        # finds the same loops everywhere, and joins them.
        numbers = numbers[..., None, None, None]
        return torch.split(numbers if level is None else numbers + 0 * level, 1, dim=1)

    slots = zip(
        spread(1 - lost), spread(lost * (which == _GRAY)), spread(lost * (which == _MEAN)),
        strict=True,
    )  # fmt: skip
    for i, (keep, gray_share, level_share) in enumerate(slots):
        if i == 3:
            parts = _rounded(_hue(parts, *spread(shift), white), white)
        gray = color.gray_level(parts, white)
        mean = gray.mean((3, 4), keepdim=True) if level is None else level
        rest = torch.addcmul(level_share * mean, gray, gray_share)  # (B, 1, T, H, W)
        parts = _rounded(color.mixed(parts, keep, rest, white), white)
    return parts


def _hue(parts: Parts, shift: Tensor, white: int) -> Parts:
    if len(parts) == 1 and parts[0].shape[1] == 3:
        return [color.hue_of_whole(parts[0], shift, white)]
    return color.hue(parts, shift, white)


def _rounded(parts: Parts, white: int) -> Parts:
    """Round down what is a whole number, as uint8 does."""
    return parts if white == 1 else [part.floor() for part in parts]
