"""RandAugment for videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as V
from torch import Tensor

from iivcl._precision import without_autocast
from iivcl.augment._transform import Transform, draw_uniform
from iivcl.augment.functional._clip import Rows, check_unit_range, select_clips

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
        if num_ops < 0:
            raise ValueError(f"`num_ops` must be at least 0; got {num_ops}")
        if not 0 <= magnitude <= _STEPS:
            raise ValueError(f"`magnitude` must be in [0, {_STEPS}]; got {magnitude}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> RandAugmentParams:
        """Draw operations and directions; see :meth:`Transform.make_params`."""
        op = draw_uniform(video, generator, 0, len(_OPERATIONS), columns=self.num_ops).long()
        negative = draw_uniform(video, generator, columns=self.num_ops) < 0.5
        return RandAugmentParams(op.clamp(max=len(_OPERATIONS) - 1), negative)

    def apply(self, video: Tensor, params: RandAugmentParams) -> Tensor:  # type: ignore[override]
        """Apply the operations; see :meth:`Transform.apply`."""
        check_unit_range(video)
        level = self.magnitude / _STEPS
        for op, negative in zip(params.op.unbind(1), params.negative.unbind(1), strict=True):
            for index, (operation, has_two_ways) in enumerate(_OPERATIONS):
                for sign in (1, -1) if has_two_ways else (1,):
                    where = op == index
                    if has_two_ways:
                        where = where & (negative == (sign == -1))
                    change = partial(_on_frames, operation=operation, level=sign * level)
                    video = select_clips("op", where, video, change)
        return video

    def __repr__(self) -> str:
        return f"RandAugment(num_ops={self.num_ops}, magnitude={self.magnitude})"


def _on_frames(
    clips: Tensor, rows: Rows, *, operation: Callable[[Tensor, float], Tensor], level: float
) -> Tensor:
    frames = clips.transpose(1, 2).flatten(0, 1)  # (NT, C, H, W), as torchvision has it
    n, c, t, height, width = clips.shape
    with without_autocast(clips):
        frames = operation(frames, level)
    return frames.view(n, t, c, height, width).transpose(1, 2)


def _affine(frames: Tensor, *, shear: tuple[float, float], shift: tuple[int, int]) -> Tensor:
    """Shear about the corner, or shift."""
    degrees = [math.degrees(math.atan(s)) for s in shear]
    center = [0.0, 0.0] if any(shear) else None
    moved: Tensor = V.affine(
        frames, angle=0.0, translate=list(shift), scale=1.0, shear=degrees, center=center
    )
    return moved


def _solarize(frames: Tensor, level: float) -> Tensor:
    white = 1.0 if frames.is_floating_point() else 255.0
    inverted: Tensor = V.solarize(frames, white * (1 - level))
    return inverted


_SHIFT = 150 / 331  # of the frame: the paper's 150 pixels of an Inception input

# (operation of frames (N, C, H, W) and a level in [-1, 1], whether a level has two ways)
_OPERATIONS: tuple[tuple[Callable[[Tensor, float], Tensor], bool], ...] = (
    (lambda x, level: x, False),
    (lambda x, level: _affine(x, shear=(0.3 * level, 0), shift=(0, 0)), True),
    (lambda x, level: _affine(x, shear=(0, 0.3 * level), shift=(0, 0)), True),
    (lambda x, level: _affine(x, shear=(0, 0), shift=(int(_SHIFT * level * x.shape[-1]), 0)), True),
    (lambda x, level: _affine(x, shear=(0, 0), shift=(0, int(_SHIFT * level * x.shape[-2]))), True),
    (lambda x, level: V.rotate(x, 30 * level), True),
    (lambda x, level: V.adjust_brightness(x, 1 + 0.9 * level), True),
    (lambda x, level: V.adjust_saturation(x, 1 + 0.9 * level), True),
    (lambda x, level: V.adjust_contrast(x, 1 + 0.9 * level), True),
    (lambda x, level: V.adjust_sharpness(x, 1 + 0.9 * level), True),
    (lambda x, level: V.posterize(x, round(8 - 4 * level)), False),
    (_solarize, False),
    (lambda x, level: V.autocontrast(x), False),
    (lambda x, level: V.equalize(x), False),
)
