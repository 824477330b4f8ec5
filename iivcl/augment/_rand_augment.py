"""RandAugment for videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torchvision.transforms.v2.functional as V
from torch import Tensor

from iivcl._checks import check_at_least, check_within
from iivcl.augment._program import Choose, OnFrames, Program
from iivcl.augment._transform import Drawn, Range, Transform, chance

__all__ = ["RandAugment"]

_STEPS = 30  # magnitudes go from 0 to this


class RandAugmentParams(NamedTuple):
    """Parameters of :class:`RandAugment`."""

    op: Tensor
    """(B, num_ops) int64, which of the fourteen operations, in their order of application."""
    negative: Tensor
    """(B, num_ops) bool, whether the operation goes the other way, where it has two."""


class RandAugment(Transform[RandAugmentParams]):
    """Apply random operations of one magnitude to every clip, alike on all its frames.

    The fourteen operations of torchvision with their ranges: identity, shear and translation along
    x and y, rotation (nearest pixel, black outside), brightness, colour, contrast, sharpness,
    posterize, solarize, autocontrast and equalize. Autocontrast and equalize follow each frame.

    It belongs in the workers of a loader: on the CPU each clip pays for its own operations, while
    on an accelerator every clip would pay for all of them.

    Args:
        num_ops: Operations per clip, at least 0.
        magnitude: Strength of all of them, 0 to 30.

    Example:
        >>> augment = RandAugment(num_ops=2, magnitude=9)
        >>> augment(torch.zeros(4, 3, 8, 32, 32, dtype=torch.uint8)).shape
        torch.Size([4, 3, 8, 32, 32])

    Source:
        Cubuk et al., "RandAugment" (arXiv 1909.13719).
    """

    def __init__(self, *, num_ops: int = 2, magnitude: int = 9) -> None:
        super().__init__()
        check_at_least(0, num_ops=num_ops, magnitude=magnitude)
        check_within(0, _STEPS, magnitude=magnitude)
        self.num_ops = num_ops
        self.magnitude = magnitude

    def describe(self, params: RandAugmentParams) -> Program:
        """Choose operations and directions; see :meth:`Transform.describe`."""
        level = self.magnitude / _STEPS
        layers = zip(params.op.unbind(1), params.negative.unbind(1), strict=True)
        return tuple(Choose(op, _choices(level, negative.long())) for op, negative in layers)

    def _ranges(self) -> Sequence[Range]:
        return [(0.0, float(len(_OPERATIONS)))] * self.num_ops + [chance(0.5)] * self.num_ops

    def _read(self, drawn: Drawn) -> RandAugmentParams:
        op, negative = drawn.numbers(self.num_ops), drawn.after(self.num_ops).chances(self.num_ops)
        return RandAugmentParams(op.long(), negative)

    def __repr__(self) -> str:
        return f"RandAugment(num_ops={self.num_ops}, magnitude={self.magnitude})"


def _choices(level: float, negative: Tensor) -> tuple[Program, ...]:
    """One program for each operation; of those with two ways, every clip goes its own."""
    programs: list[Program] = []
    for name, (function, has_two_ways) in _OPERATIONS.items():
        ways = tuple((OnFrames(name, function, way),) for way in (level, -level))
        programs.append((Choose(negative, ways),) if has_two_ways else ways[0])
    return tuple(programs)


def _shear(frames: Tensor, across: float, down: float) -> Tensor:
    """Shear about the corner."""
    degrees = [math.degrees(math.atan(slope)) for slope in (across, down)]
    return _affine(frames, translate=[0, 0], shear=degrees, center=[0.0, 0.0])


def _shift(frames: Tensor, across: float, down: float) -> Tensor:
    """Shift by a share of the largest translation."""
    height, width = frames.shape[-2:]
    pixels = [int(_SHIFT * across * width), int(_SHIFT * down * height)]
    return _affine(frames, translate=pixels, shear=[0.0, 0.0], center=None)


_affine: Callable[..., Tensor] = partial(V.affine, angle=0.0, scale=1.0)


def _solarize(frames: Tensor, level: float) -> Tensor:
    threshold = 1 - level if frames.is_floating_point() else math.ceil(255 * (1 - level))
    inverted: Tensor = V.solarize(frames, threshold)
    return inverted


def _blend(frames: Tensor, level: float, other: str) -> Tensor:
    """Blend as torchvision does, whose products of bytes have the default dtype; here float32."""
    keep, whole = 1 + 0.9 * level, not frames.is_floating_point()
    if other == "gray" and frames.shape[-3] == 1:
        return frames
    floats = frames.float() if whole else frames
    out = floats * keep
    if other != "black":
        gray: Tensor = V.rgb_to_grayscale(floats, 1)
        gray = gray.floor() if whole else gray
        out.add_(gray.mean((-3, -2, -1), True) if other == "mean" else gray, alpha=1 - keep)
    return out.clamp_(0, 255 if whole else 1).to(frames.dtype)


_SHIFT = 150 / 331  # of the frame: the paper's 150 pixels of an Inception input

# A function of frames (N, C, H, W) and a level in [-1, 1], and whether a level has two ways.
_OPERATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], bool]] = {
    "identity": (lambda x, level: x, False),
    "shear_x": (lambda x, level: _shear(x, 0.3 * level, 0), True),
    "shear_y": (lambda x, level: _shear(x, 0, 0.3 * level), True),
    "translate_x": (lambda x, level: _shift(x, level, 0), True),
    "translate_y": (lambda x, level: _shift(x, 0, level), True),
    "rotate": (lambda x, level: V.rotate(x, 30 * level), True),
    "brightness": (partial(_blend, other="black"), True),
    "color": (partial(_blend, other="gray"), True),
    "contrast": (partial(_blend, other="mean"), True),
    "sharpness": (lambda x, level: V.adjust_sharpness(x, 1 + 0.9 * level), True),
    "posterize": (lambda x, level: V.posterize(x, round(8 - 4 * level)), False),
    "solarize": (_solarize, False),
    "autocontrast": (lambda x, level: V.autocontrast(x), False),
    "equalize": (lambda x, level: V.equalize(x), False),
}
