"""The engines for accelerators and for compilers: all clips at once, and no number is read.

They are the reference but for what has a faster form: resampling uint8 clips on tensor cores, the
jitter, whose hue is turned once, and the blur in a graph, where it is a sum of shifted videos.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_reach
from iivcl.augment._reference import REFERENCE, Engine, Parts, joined, planes_of, resample
from iivcl.augment._separable import gaussian_taps, reflected, wide

__all__ = ["BATCHED", "COMPILED"]

_MEAN, _GRAY, _HUE = 1, 2, 3  # the places of these operations in a jitter


def _resample(video: Tensor, op: ops.Resample) -> Tensor:
    # float16 holds 0..255 exactly and runs on tensor cores, which sum in float32.
    is_exact = video.dtype == torch.uint8 and video.device.type == "cuda"
    return resample(video, op, torch.float16 if is_exact else None)


def _blur_by_taps(video: Tensor, op: ops.Blur) -> Tensor:
    """Blur by a sum of shifted videos, of which a compiler makes one pass for each direction."""
    check_reach(op.kernel_size, *video.shape[-2:])
    values = video.to(wide(video))
    taps = gaussian_taps(op.sigma.to(values.dtype), op.kernel_size)  # (B, K)
    weights = [color.per_clip(tap, values) for tap in taps.unbind(1)]
    for axis in (4, 3):
        source = reflected(values.shape[axis], op.kernel_size // 2, video.device)  # (size, K)
        shifted = [values.index_select(axis, pixels) for pixels in source.unbind(1)]
        values = weights[0] * shifted[0]
        for weight, neighbor in zip(weights[1:], shifted[1:], strict=True):
            values = values + weight * neighbor
    return (values if video.is_floating_point() else values.round()).to(video.dtype)


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
    *blends, (hue,) = op.programs
    factors = torch.stack([blend.factor for (blend,) in blends], dim=1)  # (B, 3)
    which = torch.cat([op.order[:, :3], op.order[:, 1:]], dim=1)  # (B, 6)
    before_hue = _comes_before(_HUE, op.order)[:, :3]
    happens = torch.cat([before_hue, ~before_hue], dim=1)
    if len(planes) == 1:
        happens = happens & (which != _GRAY)
    keep = torch.where(happens, factors.gather(1, which.clamp(max=_GRAY)), 1.0)

    planes, level = [plane.to(wide(plane)) for plane in planes], None
    if compiled:
        # One pass ahead finds the mean gray level: what comes before its blend fuses with the
        # mean, and the whole chain, free of means, is a pass of its own.
        is_early = _comes_before(_MEAN, op.order)
        early = torch.where(torch.cat([is_early[:, :3], is_early[:, 1:]], dim=1), keep, 1.0)
        early_hue = (is_early & (op.order == _HUE)).any(dim=1)
        shift = torch.where(early_hue, hue.shift, 0.0)
        before = _chain(planes, which, early, shift, white, level=torch.zeros_like(planes[0][:1]))
        level = color.gray_level(before, white).mean((3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    return [plane.to(dtype) for plane in _chain(planes, which, keep, hue.shift, white, level)]


def _comes_before(kind: int, order: Tensor) -> Tensor:
    """Whether each turn (B, 4) comes before that of one kind."""
    return (order != kind).cumprod(dim=1).bool()


def _chain(
    planes: Parts, which: Tensor, keep: Tensor, shift: Tensor, white: int, level: Tensor | None
) -> Parts:
    """Three blends, hue, three blends; ``keep`` (B, 6) is 1 where a blend does nothing.

    ``level`` is the mean gray level for the blend with it, by default that of its turn.
    """
    of_gray = torch.where(which == _GRAY, 1 - keep, 0.0)
    of_level = torch.where(which == _MEAN, 1 - keep, 0.0)
    for i, numbers in enumerate(torch.stack([keep, of_gray, of_level]).unbind(2)):
        if i == 3:
            planes = _rounded(color.hue(planes, color.per_clip(shift, planes[0]), white), white)
        own, gray_share, level_share = (color.per_clip(n, planes[0]) for n in numbers.unbind(0))
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
    ops.Blur: joined(_blur_by_taps),
}
