"""The reference engine: a program means what these functions compute.

All clips go through one operation after the other, out of place, differentiable, on any device,
and without reading a value. The other engines are held to it, and it is held to torchvision.

An engine is a table from operations to functions. The channels of a video may lie apart, in parts:
what is done to pixels then stays a chain of arithmetic, which a compiler joins into one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iivcl._checks import common_dtype
from iivcl._precision import without_autocast
from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment._arguments import (
    check_boxes,
    check_channels,
    check_reach,
    check_statistics,
    check_unit_range,
    check_video,
)
from iivcl.augment._color_arithmetic import Parts, planes_of
from iivcl.augment._separable import gaussian_weights, resize_weights, separable

__all__ = ["REFERENCE", "Engine", "by_channel", "check_kept", "joined", "resample", "run"]
__all__ += ["run_parts", "to_float"]

Engine = dict[type, Callable[[Parts, Any, Any], Parts]]


def run(program: ops.Program, video: Tensor, engine: Engine | None = None) -> Tensor:
    """Execute a program on (B, C, T, H, W), by default with the reference."""
    return _join(run_parts(program, [video], engine or REFERENCE))


def run_parts(program: ops.Program, parts: Parts, engine: Engine) -> Parts:
    for op in program:
        parts = engine[type(op)](parts, op, engine)
    return parts


def _join(parts: Parts) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    flat = torch.cat([part.flatten(2) for part in parts], dim=1)  # in no channels-last order
    return flat.unflatten(2, parts[0].shape[2:])  # type: ignore[no-any-return, no-untyped-call]


def joined(execute: Callable[[Tensor, Any], Tensor]) -> Callable[..., Parts]:
    """Make a function of a whole video one of parts."""
    return lambda parts, op, engine: [execute(_join(parts), op)]


def by_channel(execute: Callable[[Tensor, Any], Tensor]) -> Callable[..., Parts]:
    """Make a function of any number of channels one of parts."""
    return lambda parts, op, engine: [execute(part, op) for part in parts]


# --- where pixels come from ----------------------------------------------------------------------


def resample(video: Tensor, op: ops.Resample, dtype: torch.dtype | None = None) -> Tensor:
    """Cut and resize, with products in a dtype."""
    check_boxes(op.boxes, *video.shape[-2:])
    weights = resize_weights(op.boxes.to(common_dtype(video)), video.shape[-2:], op.size)
    return separable(video, *weights, dtype=dtype)


def _center_crop(video: Tensor, op: ops.CenterCrop) -> Tensor:
    (height, width), (in_height, in_width) = op.size, video.shape[-2:]
    if height > in_height or width > in_width:
        raise ValueError(
            f"`size` must fit in the frame of {in_height} x {in_width} pixels; "
            f"got {height} x {width}. Resize first"
        )
    top, left = round((in_height - height) / 2), round((in_width - width) / 2)
    return video[..., top : top + height, left : left + width]


def _flip(video: Tensor, op: ops.Flip) -> Tensor:
    return video.flip(-1)


def _blur(video: Tensor, op: ops.Blur) -> Tensor:
    height, width = video.shape[-2:]
    check_reach(op.kernel_size, height, width)
    sigma = op.sigma.to(common_dtype(video))
    horizontal = gaussian_weights(sigma, op.kernel_size, width)  # (B, W, W)
    is_square = height == width
    vertical = horizontal if is_square else gaussian_weights(sigma, op.kernel_size, height)
    return separable(video, vertical, horizontal)


# --- what pixels hold ----------------------------------------------------------------------------


def to_float(video: Tensor, op: ops.ToFloat) -> Tensor:
    if video.is_floating_point():
        return video.to(op.dtype)
    return (video.to(torch.promote_types(op.dtype, torch.float32)) / 255).to(op.dtype)


def _normalize(parts: Parts, op: ops.Normalize, engine: Engine) -> Parts:
    planes = planes_of(parts)
    check_statistics(planes[0].expand(-1, len(planes), -1, -1, -1), op.mean, op.std)
    if not planes[0].is_floating_point():
        planes = [to_float(plane, ops.ToFloat(torch.float32)) for plane in planes]
    dtype = op.dtype or planes[0].dtype
    each = zip(planes, op.mean, op.std, strict=True)
    return [((plane - mean) / std).to(dtype) for plane, mean, std in each]


def _lay_out(parts: Parts, op: ops.Layout, engine: Engine) -> Parts:
    if op.memory_format == torch.channels_last_3d:  # which a compiler so writes at once
        parts = [torch.cat([part.movedim(1, -1) for part in parts], dim=-1).movedim(-1, 1)]
    return [torch.cat(tuple(parts), dim=1).contiguous(memory_format=op.memory_format)]


def _recolored(check: Any, change: Callable[[Parts, Any, int], Parts]) -> Callable[..., Parts]:
    """Make an operation on floats one of any video; uint8 is rounded down."""

    def execute(parts: Parts, op: Any, engine: Engine) -> Parts:
        for part in parts if len(parts) == 3 else [_join(parts)]:
            check(part)
        values = [part.to(common_dtype(part)) for part in parts]
        changed = change(values, op, color.white_of(parts[0]))
        return [part.to(parts[0].dtype) for part in changed]

    return execute


def _blend(parts: Parts, op: ops.Blend, white: int) -> Parts:
    if op.other == "gray" and len(planes_of(parts)) == 1:
        return parts
    return color.blend(parts, color.per_clip(op.factor, parts[0]), op.other, white)


def _hue(parts: Parts, op: ops.Hue, white: int) -> Parts:
    return color.hue(planes_of(parts), color.per_clip(op.shift, parts[0]), white)


def _gray(parts: Parts, op: ops.Gray, white: int) -> Parts:
    level = color.gray_level(parts, white)
    return [level.expand_as(part) for part in parts]


def _solarize(video: Tensor, op: ops.Solarize) -> Tensor:
    check_unit_range(video)
    white = color.white_of(video)
    share = video if white == 1 else video.to(common_dtype(video)) / white
    return torch.where(share >= op.threshold.view(-1, 1, 1, 1, 1), white - video, video)


def _on_frames(video: Tensor, op: ops.OnFrames) -> Tensor:
    check_unit_range(video)
    wide = video.to(common_dtype(video)) if video.is_floating_point() else video
    frames = wide.transpose(1, 2)  # (B, T, C, H, W)
    with without_autocast(video):
        changed = op.function(frames.flatten(0, 1), op.level)
    return changed.view(frames.shape).transpose(1, 2).to(video.dtype)


# --- which clips, and in which order -------------------------------------------------------------


def _where(parts: Parts, op: ops.Where, engine: Engine) -> Parts:
    changed = run_parts(op.program, parts, engine)
    parts = [_join(parts)] if len(changed) == 1 else planes_of(parts)
    chosen, where = [], op.where.view(-1, 1, 1, 1, 1)
    for before, after in zip(parts, changed, strict=True):
        check_kept((before.shape, before.dtype), (after.shape, after.dtype))
        chosen.append(torch.where(where, after, before))
    return chosen


def check_kept(before: tuple[Any, torch.dtype], after: tuple[Any, torch.dtype]) -> None:
    """Check that a transform of some clips kept the shape and dtype that the others have."""
    if before != after:
        raise ValueError(
            f"`transform` must keep shape and dtype inside RandomApply; got {tuple(after[0])} "
            f"{after[1]} from {tuple(before[0])} {before[1]}"
        )


def _expand(parts: Parts, op: Any, engine: Engine) -> Parts:
    return run_parts(op.expand(parts[0]), parts, engine)


def _call(video: Tensor, op: ops.Call) -> Tensor:
    changed: Tensor = op.transform.apply(video, op.params)
    check_video(changed)
    return changed


REFERENCE: Engine = {
    ops.Resample: joined(resample),
    ops.ResizeShortSide: _expand,
    ops.CenterCrop: by_channel(_center_crop),
    ops.Flip: by_channel(_flip),
    ops.Blur: joined(_blur),
    ops.ToFloat: by_channel(to_float),
    ops.Normalize: _normalize,
    ops.Layout: _lay_out,
    ops.Blend: _recolored(check_unit_range, _blend),
    ops.Hue: _recolored(check_unit_range, _hue),
    ops.Gray: _recolored(check_channels, _gray),
    ops.Solarize: by_channel(_solarize),
    ops.OnFrames: joined(_on_frames),
    ops.Where: _where,
    ops.InOrder: _expand,
    ops.Choose: _expand,
    ops.Call: joined(_call),
}
