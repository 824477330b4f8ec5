"""The engines for accelerators and for compilers: all clips at once, and no number is read.

They are the reference but for what has a faster form: resampling uint8 clips on tensor cores, the
jitter, whose hue is turned once, jitter and blur of some of the clips, which the others pass with
numbers that change nothing, and the blur in a graph, where it is a sum of shifted videos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iivcl._checks import common_dtype
from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_reach
from iivcl.augment._batched_jitter import is_jitter, jitter
from iivcl.augment._color_arithmetic import Parts, planes_of
from iivcl.augment._constants import row
from iivcl.augment._reference import REFERENCE, Engine, by_channel, joined, resample, run, to_float
from iivcl.augment._separable import gaussian_taps, reflected

__all__ = ["BATCHED", "COMPILED", "COMPILED_APART"]

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
    if is_jitter(own, parts):
        return jitter(parts, own, op.where, compiled=engine is not BATCHED)
    return REFERENCE[ops.Where](parts, op, engine)


def _in_order(parts: Parts, op: ops.InOrder, engine: Engine) -> Parts:
    if is_jitter(op, parts):
        return jitter(parts, op, None, compiled=engine is not BATCHED)
    return REFERENCE[ops.InOrder](parts, op, engine)


def _normalize(video: Tensor, op: ops.Normalize) -> Tensor:
    if len(op.mean) != video.shape[1] or not video.is_floating_point():
        return run((op,), video)
    values = video.to(common_dtype(video))
    scale = row(tuple(1 / std for std in op.std), values)
    offset = row(tuple(-m / std for m, std in zip(op.mean, op.std, strict=True)), values)
    scale, offset = scale.view(-1, 1, 1, 1), offset.view(-1, 1, 1, 1)
    return torch.addcmul(offset, values, scale).to(op.dtype or video.dtype)


def _blur_by_taps(parts: Parts, op: ops.Blur, engine: Engine) -> Parts:
    """Blur by a sum of shifted videos, of which a compiler makes one pass for each direction."""
    check_reach(op.kernel_size, *parts[0].shape[-2:])
    sigma = op.sigma.to(common_dtype(parts[0]))
    taps = gaussian_taps(sigma, op.kernel_size).view(-1, op.kernel_size, 1, 1, 1, 1).unbind(1)
    values = [part.to(sigma.dtype) for part in parts]
    for axis in (4, 3):
        source = reflected(parts[0].shape[axis], op.kernel_size // 2, sigma.device).unbind(1)
        for i, value in enumerate(values):  # torch 2.4 cannot compile it as a comprehension
            values[i] = _sum_of_taps(value, taps, axis, source)
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


def _whole(execute: Callable[..., Parts]) -> Callable[..., Parts]:
    """Join the channels by a plain ``cat``: the pass before it then writes the whole video."""
    return lambda parts, op, engine: execute([torch.cat(tuple(parts), dim=1)], op, engine)


def _apart(execute: Callable[..., Parts]) -> Callable[..., Parts]:
    """Keep the channels apart: the last pass then writes them in another order."""
    return lambda parts, op, engine: execute(planes_of(parts), op, engine)


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
    ops.Normalize: _whole(by_channel(_normalize)),
    ops.Blur: _whole(_blur_by_taps),
}
# For a result whose channels lie last in memory.
COMPILED_APART: Engine = {
    **COMPILED,
    ops.Normalize: REFERENCE[ops.Normalize],
    ops.Blur: _apart(_blur_by_taps),
}
