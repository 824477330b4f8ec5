"""The engines for accelerators and for compilers: all clips at once, and no number is read.

They are the reference but for what has a faster form: resampling uint8 clips on tensor cores, the
jitter, whose hue is turned once, jitter and blur of some of the clips, which the others pass with
numbers that change nothing, and the blur in a graph, where it is a sum of shifted videos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_reach
from iivcl.augment._batched_jitter import is_jitter, jitter
from iivcl.augment._color_arithmetic import Parts, planes_of
from iivcl.augment._constants import per_channel
from iivcl.augment._reference import REFERENCE, Engine, by_channel, joined, resample, run, to_float
from iivcl.augment._separable import gaussian_taps, reflected, wide

__all__ = ["BATCHED", "COMPILED"]

_NO_BLUR = 1e-6  # pixels


def _resample(video: Tensor, op: ops.Resample) -> Tensor:
    # float16 holds 0..255 exactly and runs on tensor cores, which sum in float32.
    is_exact = video.dtype == torch.uint8 and video.device.type == "cuda"
    return resample(video, op, torch.float16 if is_exact else None)


def _to_float_whole(video: Tensor, op: ops.ToFloat) -> Tensor:
    if video.is_floating_point():
        return video.to(op.dtype)
    dtype = torch.promote_types(op.dtype, torch.float32)
    return (video / torch.tensor(255, dtype=dtype, device="cpu")).to(op.dtype)  # in one pass


def _to_float_in_graph(video: Tensor, op: ops.ToFloat) -> Tensor:
    # Colours begin with bytes in memory, which a compiler writes for a tensor with given strides:
    # left to itself, it would crop, flip and convert in each of the passes that follow.
    video = video.contiguous()
    return to_float(video.as_strided(video.shape, video.stride()), op)


def _where(parts: Parts, op: ops.Where, engine: Engine) -> Parts:
    """Blur and jitter all clips, the others with numbers that change nothing."""
    own: Any = op.program[0] if len(op.program) == 1 else None
    if isinstance(own, ops.Blur):
        sigma = torch.where(op.where, own.sigma, _NO_BLUR)
        return engine[ops.Blur](parts, ops.Blur(sigma, own.kernel_size), engine)
    if _can_jitter(own, parts):
        return jitter(parts, own, op.where, compiled=engine is COMPILED)
    return REFERENCE[ops.Where](parts, op, engine)


def _in_order(parts: Parts, op: ops.InOrder, engine: Engine) -> Parts:
    if _can_jitter(op, parts):
        return jitter(parts, op, None, compiled=engine is COMPILED)
    return REFERENCE[ops.InOrder](parts, op, engine)


def _can_jitter(op: object, parts: Parts) -> bool:
    return is_jitter(op) and len(planes_of(parts)) in (1, 3)


def _normalize(video: Tensor, op: ops.Normalize) -> Tensor:
    if len(op.mean) != video.shape[1] or not video.is_floating_point():
        return run((op,), video)
    values = video.to(wide(video))
    scale = per_channel(tuple(1 / std for std in op.std), values)
    offset = per_channel(tuple(-m / std for m, std in zip(op.mean, op.std, strict=True)), values)
    return torch.addcmul(offset, values, scale).to(op.dtype or video.dtype)


def _blur_by_taps(video: Tensor, op: ops.Blur) -> Tensor:
    """Blur by a sum of shifted videos, of which a compiler makes one pass for each direction."""
    check_reach(op.kernel_size, *video.shape[-2:])
    sigma = op.sigma.to(wide(video))
    taps = gaussian_taps(sigma, op.kernel_size).view(-1, op.kernel_size, 1, 1, 1, 1).unbind(1)
    value = video.to(sigma.dtype)
    for axis in (4, 3):
        source = reflected(video.shape[axis], op.kernel_size // 2, sigma.device).unbind(1)
        total = taps[0] * value.index_select(axis, source[0])
        for tap, pixels in zip(taps[1:], source[1:], strict=True):
            total = total + tap * value.index_select(axis, pixels)
        value = total
    return (value if video.is_floating_point() else value.round()).to(video.dtype)


def _joined_in_graph(execute: Callable[[Tensor, Any], Tensor]) -> Callable[..., Parts]:
    """What ``joined`` is, by a plain ``cat``: the pass before it then writes the whole video."""
    return lambda parts, op, engine: [execute(torch.cat(tuple(parts), dim=1), op)]


BATCHED: Engine = {
    **REFERENCE,
    ops.Resample: joined(_resample),
    ops.ToFloat: by_channel(_to_float_whole),
    ops.Normalize: joined(_normalize),
    ops.Where: _where,
    ops.InOrder: _in_order,
}
COMPILED: Engine = {
    **BATCHED,
    ops.ToFloat: by_channel(_to_float_in_graph),
    ops.Normalize: _joined_in_graph(_normalize),
    ops.Blur: _joined_in_graph(_blur_by_taps),
}
