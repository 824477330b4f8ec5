"""Transforms of where pixels come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl._checks import check_at_least
from iivcl.augment import _program as ops
from iivcl.augment._arguments import check_probability, check_range, check_size
from iivcl.augment._constants import constant
from iivcl.augment._transform import Drawn, Range, Transform, chance

__all__ = ["CenterCrop", "RandomHorizontalFlip", "RandomResizedCrop", "ResizeShortSide"]


_ATTEMPTS = 10


class CropParams(NamedTuple):
    """Parameters of :class:`RandomResizedCrop`."""

    boxes: Tensor
    """(B, 4) int64, pixels: top, left, height, width."""


class RandomResizedCrop(Transform[CropParams]):
    """Cut a box of random area and aspect ratio out of every clip and resize it.

    The area is uniform over ``scale`` and the aspect ratio log-uniform over ``ratio``. Of ten
    draws the first that fits in the frame counts, else the largest central box whose aspect ratio
    is within ``ratio``.

    Args:
        size: Height and width of the result in pixels; one number for a square.
        scale: Area of the box as a share of the frame, within (0, 1].
        ratio: Width over height of the box.

    Example:
        >>> crop = RandomResizedCrop(112, scale=(0.2, 0.766))
        >>> crop(torch.zeros(2, 3, 8, 128, 170, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 112, 112])

    Source:
        Szegedy et al., "Going Deeper with Convolutions" (arXiv 1409.4842), section 6.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        self.size = check_size(size)
        self.scale = check_range("scale", scale, 1e-6, 1.0)
        self.ratio = check_range("ratio", ratio, 1e-3, 1e3)

    def describe(self, params: CropParams) -> ops.Program:
        """Cut and resize; see :meth:`Transform.describe`."""
        return (ops.Resample(params.boxes, self.size),)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result, whatever the frame has."""
        return self.size

    def _ranges(self) -> Sequence[Range]:
        low, high = self.ratio
        half_log_ratio = 0.5 * math.log(low), 0.5 * math.log(high)
        return [self.scale] * _ATTEMPTS + [half_log_ratio] * _ATTEMPTS + [(0.0, 1.0)] * 2

    def _read(self, drawn: Drawn) -> CropParams:
        counts = [_ATTEMPTS, _ATTEMPTS, 2]
        share, half_log_ratio, corner = torch.split(drawn.numbers(sum(counts)), counts, dim=1)
        # The logarithms of height and width, and then both negated, so that one comparison says
        # whether they round to at least 1 and at most the frame: (B, 4, attempts).
        sign, of_ratio, half_area, limit, one_more, fallback = self._constants(*drawn.size, share)
        logs = torch.addcmul(half_area, half_log_ratio.unsqueeze(1), of_ratio)
        logs = torch.addcmul(logs, share.log().unsqueeze(1), sign)
        found, first = (logs <= limit).all(dim=1).max(dim=1)  # (B,), the first attempt that fits
        sides = logs[:, :2].gather(2, first.view(-1, 1, 1).expand(-1, 2, 1)).squeeze(2)
        box = torch.cat([corner, sides.exp().round()], dim=1)  # (B, 4)
        box = torch.where(found.unsqueeze(1), box, fallback)
        box[:, :2].mul_(one_more - box[:, 2:])  # of the places that the box has
        return CropParams(box.long())

    def _constants(self, height: int, width: int, like: Tensor) -> Sequence[Tensor]:
        log, half_area = math.log, 0.5 * math.log(height * width)
        middle = 0.5 - 1e-6  # of an even number of places the one before
        low, high = self.ratio  # width over height, within which the largest box is:
        largest = max(1, min(height, round(width / low))), max(1, min(width, round(height * high)))
        table = (
            (0.5, 0.5, -0.5, -0.5),
            (-1.0, 1.0, 1.0, -1.0),
            (half_area, half_area, -half_area, -half_area),
            (log(height + 0.499), log(width + 0.499), -log(0.501), -log(0.501)),
            (height + 1.0, width + 1.0, 0.0, 0.0),
            (middle, middle, *largest),
        )
        rows = constant(table, like).unsqueeze(2).unbind(0)  # (4, 1) each
        return *rows[:4], rows[4][:2, 0], rows[5][:, 0]

    def __repr__(self) -> str:
        low, high = self.ratio
        ratio = f"({low:.4g}, {high:.4g})"
        return f"RandomResizedCrop({_size(self.size)}, scale={self.scale}, ratio={ratio})"


class FlipParams(NamedTuple):
    """Parameters of :class:`RandomHorizontalFlip`."""

    flip: Tensor
    """(B,) bool, the clips that are mirrored."""


class RandomHorizontalFlip(Transform[FlipParams]):
    """Mirror every clip left to right with probability ``p``.

    Args:
        p: Probability, in [0, 1].

    Example:
        >>> RandomHorizontalFlip(p=1.0)(torch.arange(3.0).view(1, 1, 1, 1, 3)).flatten()
        tensor([2., 1., 0.])
    """

    def __init__(self, *, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability(p)

    def describe(self, params: FlipParams) -> ops.Program:
        """Mirror the chosen clips; see :meth:`Transform.describe`."""
        return (ops.Where(params.flip, (ops.Flip(),)),)

    def _ranges(self) -> Sequence[Range]:
        return (chance(self.p),)

    def _read(self, drawn: Drawn) -> FlipParams:
        return FlipParams(drawn.chances(1).squeeze(1))

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


class ResizeShortSide(Transform[tuple[()]]):
    """Resize frames so that their short side has ``size`` pixels, keeping the aspect ratio.

    Args:
        size: Pixels of the short side.

    Example:
        >>> ResizeShortSide(128)(torch.zeros(1, 3, 8, 240, 320)).shape
        torch.Size([1, 3, 8, 128, 170])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        check_at_least(1, size=size)
        self.size = size

    def describe(self, params: tuple[()]) -> ops.Program:
        """Resize every clip alike; see :meth:`Transform.describe`."""
        return (ops.ResizeShortSide(self.size),)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        return ops.short_side_size(height, width, self.size)

    def __repr__(self) -> str:
        return f"ResizeShortSide({self.size})"


class CenterCrop(Transform[tuple[()]]):
    """Cut the middle of every frame.

    Args:
        size: Height and width of the result in pixels; one number for a square.

    Example:
        >>> CenterCrop(112)(torch.zeros(1, 3, 8, 128, 170)).shape
        torch.Size([1, 3, 8, 112, 112])
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = check_size(size)

    def describe(self, params: tuple[()]) -> ops.Program:
        """Cut every clip alike; see :meth:`Transform.describe`."""
        return (ops.CenterCrop(self.size),)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        return self.size

    def __repr__(self) -> str:
        return f"CenterCrop({_size(self.size)})"


def _size(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else str(size)
