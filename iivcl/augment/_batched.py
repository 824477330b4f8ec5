"""The engines for accelerators and for compilers: all clips at once, and no number is read.

They are the reference but for what has a faster form: resampling uint8 clips on tensor cores, the
jitter, whose hue is turned once, and the blur in a graph, where it is a sum of shifted videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_reach
from iivcl.augment._reference import (
    REFERENCE,
    Engine,
    Parts,
    by_channel,
    joined,
    planes_of,
    resample,
    to_float,
)
from iivcl.augment._separable import gaussian_taps, reflected, wide

__all__ = ["BATCHED", "COMPILED"]

_MEAN, _GRAY, _HUE = 1, 2, 3  # the places of these operations in a jitter


def _resample(video: Tensor, op: ops.Resample) -> Tensor:
    # float16 holds 0..255 exactly and runs on tensor cores, which sum in float32.
    is_exact = video.dtype == torch.uint8 and video.device.type == "cuda"
    return resample(video, op, torch.float16 if is_exact else None)


def _to_float(video: Tensor, op: ops.ToFloat) -> Tensor:
    # Colours begin with bytes in memory, which a compiler writes for a tensor with given strides:
    # left to itself, it would crop, flip and convert in each of the passes that follow.
    video = video.contiguous()
    return to_float(video.as_strided(video.shape, video.stride()), op)


def _blur_by_taps(parts: Parts, op: ops.Blur, engine: Engine) -> Parts:
    """Blur by a sum of shifted videos, of which a compiler makes one pass for each direction."""
    check_reach(op.kernel_size, *parts[0].shape[-2:])
    sigma = op.sigma.to(wide(parts[0]))
    taps = gaussian_taps(sigma, op.kernel_size).view(-1, op.kernel_size, 1, 1, 1, 1).unbind(1)
    values = [part.to(sigma.dtype) for part in parts]
    for axis in (4, 3):
        source = reflected(parts[0].shape[axis], op.kernel_size // 2, sigma.device).unbind(1)
        sum_of_taps = partial(_sum_of_taps, taps=taps, axis=axis, source=source)
        values = list(map(sum_of_taps, values))  # torch 2.4 cannot compile it as a comprehension
    if not parts[0].is_floating_point():
        values = [value.round() for value in values]
    return [value.to(parts[0].dtype) for value in values]


def _sum_of_taps(
    value: Tensor, taps: Sequence[Tensor], axis: int, source: Sequence[Tensor]
) -> Tensor:
    total = taps[0] * value.index_select(axis, source[0])
    for tap, pixels in zip(taps[1:], source[1:], strict=True):
        total = total + tap * value.index_select(axis, pixels)
    return total


def _jitter(parts: Parts, op: ops.InOrder, engine: Engine, *, compiled: bool) -> Parts:
    """Blend with black, with the mean and with gray, and turn the hue, in the order of each clip.

    The blends are one operation with other numbers. Hue takes its turn once: up to three blends
    come before it and up to three after it, and those that do not keep all.
    """
    kinds = [getattr(own[0], "other", type(own[0])) for own in op.programs if len(own) == 1]
    planes = planes_of(parts)
    if kinds != ["black", "mean", "gray", ops.Hue] or len(planes) not in (1, 3):
        return REFERENCE[ops.InOrder](parts, op, engine)
    white, dtype = color.white_of(planes[0]), planes[0].dtype
    (black,), (mean,), (gray,), (hue,) = op.programs
    # Six slots for blends, of which three come before hue: at which turn, and which blend.
    slot = torch.arange(6, device=op.order.device)
    turn = slot - 2 * (slot >= 3)
    which = op.order[:, turn]  # (B, 6)
    hue_turn, mean_turn = _turn_of(_HUE, op.order), _turn_of(_MEAN, op.order)  # (B, 1)
    happens = torch.where(slot < 3, turn < hue_turn, turn > hue_turn)
    if len(planes) == 1:
        happens = happens & (which != _GRAY)
    light, contrast, saturation = (op.factor.unsqueeze(1) for op in (black, mean, gray))
    factor = torch.where(which == _MEAN, contrast, torch.where(which == _GRAY, saturation, light))
    keep = torch.where(happens, factor, 1.0)  # (B, 6)

    planes, level = [plane.to(wide(plane)) for plane in planes], None
    if compiled:
        # One pass ahead finds the mean gray level: what comes before its blend fuses with the
        # mean, and the whole chain, free of means, is a pass of its own.
        early = torch.where(turn < mean_turn, keep, 1.0)
        shift = torch.where((hue_turn < mean_turn).squeeze(1), hue.shift, 0.0)
        before = _chain(planes, which, early, shift, white, level=0.0)
        level = color.gray_level(before, white).mean((3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    return [plane.to(dtype) for plane in _chain(planes, which, keep, hue.shift, white, level)]


def _turn_of(kind: int, order: Tensor) -> Tensor:
    """At which turn (B, 1) one kind comes."""
    turns = torch.arange(order.shape[1], device=order.device)
    return ((order == kind) * turns).sum(dim=1, keepdim=True)


def _chain(
    planes: Parts, which: Tensor, keep: Tensor, shift: Tensor, white: int, level: Any
) -> Parts:
    """Three blends, hue, three blends; ``keep`` (B, 6) is 1 where a blend does nothing.

    ``level`` is the mean gray level for the blend with it, by default that of its turn.
    """

    def spread(number: Tensor) -> Tensor:
        # With a level for each frame, all numbers are made to depend on the frame: a compiler then
        # finds the same loops everywhere, and joins them.
        number = color.per_clip(number, planes[0])
        return number if level is None else number + 0 * level

    of_gray = torch.where(which == _GRAY, 1 - keep, 0.0)
    of_level = torch.where(which == _MEAN, 1 - keep, 0.0)
    slots = zip(keep.unbind(1), of_gray.unbind(1), of_level.unbind(1), strict=True)
    for i, numbers in enumerate(slots):
        if i == 3:
            planes = _rounded(color.hue(planes, spread(shift), white), white)
        own, gray_share, level_share = map(spread, numbers)
        gray = color.gray_level(planes, white)
        mean = gray.mean((3, 4), keepdim=True) if level is None else level
        rest = gray_share * gray + level_share * mean  # (B, 1, T, H, W)
        planes = _rounded([color.mixed(plane, own, rest, white) for plane in planes], white)
    return planes


def _rounded(planes: Parts, white: int) -> Parts:
    """Round down what is a whole number, as uint8 does."""
    return planes if white == 1 else [plane.floor() for plane in planes]


BATCHED: Engine = {
    **REFERENCE,
    ops.Resample: joined(_resample),
    ops.InOrder: partial(_jitter, compiled=False),
}
COMPILED: Engine = {
    **BATCHED,
    ops.InOrder: partial(_jitter, compiled=True),
    ops.ToFloat: by_channel(_to_float),
    ops.Blur: _blur_by_taps,
}
