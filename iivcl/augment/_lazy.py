"""The engine for the CPU: clip by clip, with colours computed as late as possible.

One clip goes through the whole program before the next, which keeps it in the cache, and pays only
for what its own numbers ask for. A pass over a clip costs what it reads and writes, hardly what it
computes. Brightness, contrast, saturation, gray and normalization are affine in the pixels, with
numbers that hold for a frame. Only hue and the clamps in between keep a chain of them from being
one affine map, and a factor of at most 1 cannot leave [0, 1], so that its clamp changes nothing and
the map goes on growing. A blur commutes with the map, and so does hue as long as no channel mixes
with another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iivcl.augment import _color_arithmetic as color
from iivcl.augment import _program as ops
from iivcl.augment import _reference as reference
from iivcl.augment._arguments import check_boxes, check_reach, check_statistics
from iivcl.augment._color_arithmetic import planes_of
from iivcl.augment._native_resize import native_resize
from iivcl.augment._separable import blurred_clip, gaussian_weights

__all__ = ["run"]

_WHITE = sum(color.GRAY)  # gray level of a pixel that is 1 in all channels: not quite 1
_REACH = 6.0  # sigmas: what a tap weighs out there, exp(-18), is lost in rounding to float32


def run(program: ops.Program, video: Tensor) -> Tensor:
    """Execute a program on (B, C, T, H, W), B at least 1."""
    out, scratch = video, dict[Any, Tensor]()
    for i in range(len(video)):
        clip = _LazyClip(video[i : i + 1], scratch)
        clip.run(ops.of_clip(program, i))
        if i == 0:
            kind: dict[str, Any] = {"dtype": clip.dtype, "memory_format": clip.memory_format}
            out = torch.empty((len(video), *clip.shape[1:]), device="cpu", **kind)
        clip.result(out[i : i + 1])
    return out


class _LazyClip:
    """A clip and what is still to be done with it: ``scale * x + mix * gray(x) + bias``.

    Args:
        video: (1, C, T, H, W) uint8 or floating; it is never written to.
        scratch: Memory in which one clip after the other is computed: on the CPU, fresh memory of
            the size of a clip costs more than the arithmetic.
    """

    def __init__(self, video: Tensor, scratch: dict[Any, Tensor]) -> None:
        self._scratch, self._turn = scratch, 0
        self._replace(video)

    def _replace(self, video: Tensor) -> None:
        """Go on with another video, to which nothing is left to be done."""
        self._video = video  # x, of which a gray one may have a single channel
        self._is_own = False  # whether x may be written to
        self._is_result = True  # whether nothing is left to be done
        self._is_within_range: bool | None = None  # [0, 1]; None: not looked at
        self._scale, self._mix = 1.0, 0.0
        self._bias: float | Tensor = 0.0  # a number, or one for each frame (T, 1, 1)
        # The result has a shape, dtype and order in memory, and is normalised by these numbers.
        self.shape, self.dtype = video.shape, video.dtype
        self.memory_format = torch.contiguous_format
        self._mean: Sequence[float] = [0.0] * self.shape[1]
        self._std: Sequence[float] = [1.0] * self.shape[1]

    def run(self, program: ops.Program) -> None:
        """Execute a program with the numbers of this clip."""
        for op in program:
            execute = _EXECUTE.get(type(op))
            if execute is None or (type(op) in _COLORED and not self._is_colored()):
                self._replace(reference.run((op,), self.result()))
            else:
                execute(self, op)

    def result(self, out: Tensor | None = None) -> Tensor:
        """Do what is left to be done.

        Args:
            out: (1, C, T, H, W) to write to; by default fresh memory, or that of the video itself
                when nothing is left.

        Returns:
            (1, C, T, H, W).
        """
        if self._is_result:
            return self._video if out is None else out.copy_(self._video)
        out = torch.empty(self.shape, dtype=self.dtype, device="cpu") if out is None else out
        values = self._values(mixed=True).expand(self.shape)
        for i, (mean, std) in enumerate(zip(self._mean, self._std, strict=True)):
            bias = _as_tensor((self._bias - mean) / std, values)
            torch.add(bias, values[:, i], alpha=self._scale / std, out=out[:, i])
        return out

    # --- operations of any clip ------------------------------------------------------------------

    def _where(self, op: ops.Where) -> None:
        if op.where.item():
            before = self.shape, self.dtype
            self.run(op.program)
            reference.check_kept(before, (self.shape, self.dtype))

    def _choose(self, op: ops.Choose) -> None:
        self.run(op.programs[int(op.which.item())])

    def _expand(self, op: ops.InOrder | ops.ResizeShortSide) -> None:
        self.run(op.expand(self._video))

    def _resample(self, op: ops.Resample) -> None:
        video = self.result()
        check_boxes(op.boxes, *self.shape[-2:])
        top, left, height, width = op.boxes[0].tolist()
        box = video[..., top : top + height, left : left + width]
        self._replace(native_resize(box, *op.size))

    def _to_float(self, op: ops.ToFloat) -> None:
        if self.dtype != torch.uint8:
            return self._replace(self.result().to(op.dtype))
        self.dtype = op.dtype
        self._scale, self._is_within_range, self._is_result = 1 / 255, True, False

    def _blur(self, op: ops.Blur) -> None:
        height, width = self.shape[-2:]
        check_reach(op.kernel_size, height, width)
        if not self._is_colored():
            self._replace(self.result())
        values = self._values(mixed=True)
        sigma = op.sigma.to(values.dtype)
        radius = min(op.kernel_size // 2, math.ceil(_REACH * sigma.item()))
        vertical = gaussian_weights(sigma, 2 * radius + 1, height)[0]
        horizontal = gaussian_weights(sigma, 2 * radius + 1, width)[0]
        scratch = self._spare(), self._take(f"values {1 - self._turn}", values.shape)
        self._video = blurred_clip(values[0], vertical, horizontal, radius, scratch).unsqueeze(0)
        if self.dtype == torch.uint8:
            self._replace(self._video.round_().to(torch.uint8))

    # --- operations of RGB clips within [0, 1] ---------------------------------------------------

    def _blend(self, op: ops.Blend) -> None:
        keep = op.factor.item()
        if op.other == "gray":
            self._grow(keep, gray=1 - keep)
        else:
            self._grow(keep, constant=0.0 if op.other == "black" else (1 - keep) * self._level())

    def _gray(self, op: ops.Gray) -> None:
        self._grow(0.0, gray=1.0)

    def _hue(self, op: ops.Hue) -> None:
        planes = planes_of([self._values(mixed=True)])
        if len(planes) == 3:
            self._video = self._spare()
            scratch = [self._take(f"plane {i}", planes[0].shape) for i in range(4)]
            color.hue(planes, op.shift.item(), 1, [*planes_of([self._video]), *scratch])

    def _normalize(self, op: ops.Normalize) -> None:
        check_statistics(self._video.expand(self.shape), op.mean, op.std)
        self._mean, self._std, self.dtype = op.mean, op.std, op.dtype or self.dtype
        self._is_within_range = self._is_result = False

    def _lay_out(self, op: ops.Layout) -> None:
        self.memory_format = op.memory_format

    # --- the map ---------------------------------------------------------------------------------

    def _is_colored(self) -> bool:
        """Whether this is a float RGB clip within [0, 1]."""
        if not self.dtype.is_floating_point or self.shape[1] != 3 or self.shape.numel() == 0:
            return False
        if self._is_within_range is None:
            low, high = torch.aminmax(self._video)
            self._is_within_range = bool((low >= 0) & (high <= 1))
        return self._is_within_range

    def _values(self, *, mixed: bool = False) -> Tensor:
        """Numbers (1, C, T, H, W) that may be written to, with all channels mixed if need be."""
        if not self._is_own:
            self._video = self._spare().copy_(self._video)
            self._is_own, self._is_result = True, False
        if mixed and self._mix:
            self._compute()
        return self._video

    def _spare(self) -> Tensor:
        """Memory for values, other than that of the values so far, which it takes the turn of."""
        self._turn = 1 - self._turn
        return self._take(f"values {self._turn}", self._video.shape)

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        key = name, shape, torch.promote_types(self.dtype, torch.float32)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(shape, dtype=key[2], device="cpu")
        return self._scratch[key]

    def _level(self) -> float | Tensor:
        """Mean gray level of every frame of the result so far, (T, 1, 1)."""
        means = self._values().mean((3, 4)).squeeze(0)  # (C, T)
        weights = color.GRAY if len(means) == 3 else [_WHITE]
        level = color.weighted_sum(means.unbind(), weights).view(-1, 1, 1)
        return level * (self._scale + self._mix * _WHITE) + _WHITE * self._bias

    def _grow(self, keep: float, *, gray: float = 0.0, constant: float | Tensor = 0.0) -> None:
        """Compute ``keep * v + gray * gray(v) + constant`` of the value ``v`` so far, and clamp."""
        self._is_result = False
        self._mix = keep * self._mix + gray * (self._scale + _WHITE * self._mix)
        self._scale = keep * self._scale
        self._bias = (keep + _WHITE * gray) * self._bias + constant
        if keep > 1:
            self._compute()
            self._video.clamp_(0, 1)

    def _compute(self) -> None:
        """Do what is left to be done, but for normalization."""
        values, bias = self._values(), self._bias
        if values.shape[1] == 1:
            self._scale, self._mix = self._scale + _WHITE * self._mix, 0.0
        if self._mix:
            level = self._take("level", values[:, :1].shape)  # (1, 1, T, H, W)
            weights = [self._mix * weight for weight in color.GRAY]
            bias = color.weighted_sum(planes_of([values]), weights, level).add_(bias)
        bias = _as_tensor(bias, values)
        if self._mix and self._scale == 0:  # gray, for which one channel will do
            self._video = bias
        else:
            torch.add(bias, values, alpha=self._scale, out=values)
        self._scale, self._mix, self._bias = 1.0, 0.0, 0.0


def _as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device="cpu")


_EXECUTE: dict[type, Callable[[_LazyClip, Any], None]] = {
    ops.Where: _LazyClip._where,
    ops.InOrder: _LazyClip._expand,
    ops.Choose: _LazyClip._choose,
    ops.ResizeShortSide: _LazyClip._expand,
    ops.Resample: _LazyClip._resample,
    ops.ToFloat: _LazyClip._to_float,
    ops.Blur: _LazyClip._blur,
    ops.Blend: _LazyClip._blend,
    ops.Gray: _LazyClip._gray,
    ops.Hue: _LazyClip._hue,
    ops.Normalize: _LazyClip._normalize,
    ops.Layout: _LazyClip._lay_out,
}
_COLORED = (ops.Blend, ops.Gray, ops.Hue, ops.Normalize)
