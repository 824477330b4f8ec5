"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from iivcl._checks import check_within
from iivcl.augment._arguments import check_range
from iivcl.augment._constants import constant
from iivcl.augment._program import Blend, Hue, InOrder, Program
from iivcl.augment._transform import Drawn, Range, Transform

__all__ = ["ColorJitter"]

_ORDERS = tuple(itertools.permutations(range(4)))


class ColorJitterParams(NamedTuple):
    """Parameters of :class:`ColorJitter`."""

    brightness: Tensor
    """(B,) factor."""
    contrast: Tensor
    """(B,) factor."""
    saturation: Tensor
    """(B,) factor."""
    hue: Tensor
    """(B,) shift, as a share of the colour circle."""
    order: Tensor
    """(B, 4) int64, a permutation per clip of 0 brightness, 1 contrast, 2 saturation, 3 hue."""


class ColorJitter(Transform[ColorJitterParams]):
    """Change brightness, contrast, saturation and hue of every clip, in an order of its own.

    Args:
        brightness: Range (low, high) of the factor, or a number ``x`` for (max(0, 1 - x), 1 + x).
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Range of the shift within [-0.5, 0.5], or a number ``x`` for (-x, x).

    Example:
        >>> jitter = ColorJitter(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15)
        >>> clips = torch.rand(2, 3, 8, 16, 16)
        >>> params = jitter.make_params(clips, torch.Generator().manual_seed(0))
        >>> params.brightness.shape, params.order.shape
        (torch.Size([2]), torch.Size([2, 4]))
        >>> torch.equal(jitter.apply(clips, params), jitter.apply(clips, params))
        True
    """

    def __init__(
        self,
        *,
        brightness: float | tuple[float, float] = 0.0,
        contrast: float | tuple[float, float] = 0.0,
        saturation: float | tuple[float, float] = 0.0,
        hue: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__()
        self._given = (brightness, contrast, saturation, hue)
        self.brightness = _range("brightness", brightness, 1.0, 0.0, math.inf)
        self.contrast = _range("contrast", contrast, 1.0, 0.0, math.inf)
        self.saturation = _range("saturation", saturation, 1.0, 0.0, math.inf)
        self.hue = _range("hue", hue, 0.0, -0.5, 0.5)

    def describe(self, params: ColorJitterParams) -> Program:
        """Blend and turn the hue, in the order of each clip; see :meth:`Transform.describe`."""
        brightness, contrast, saturation, hue, order = params
        blends = Blend(brightness, "black"), Blend(contrast, "mean"), Blend(saturation, "gray")
        return (InOrder(order, tuple((op,) for op in (*blends, Hue(hue)))),)

    def _ranges(self) -> Sequence[Range]:
        return self.brightness, self.contrast, self.saturation, self.hue, (0.0, len(_ORDERS))

    def _read(self, drawn: Drawn) -> ColorJitterParams:
        brightness, contrast, saturation, hue, order = drawn.numbers(5).unbind(1)
        row = order.long()
        order = constant(_ORDERS, row)[row]
        return ColorJitterParams(brightness, contrast, saturation, hue, order)

    def __repr__(self) -> str:
        names = ("brightness", "contrast", "saturation", "hue")
        given = [f"{name}={value}" for name, value in zip(names, self._given, strict=True)]
        return f"ColorJitter({', '.join(given)})"


def _range(name: str, value: float | Range, middle: float, low: float, high: float) -> Range:
    """A range within [low, high], or that of the numbers no further than this from ``middle``."""
    if not isinstance(value, (tuple, list)):
        check_within(0, high - middle, **{name: value})
        value = (max(low, middle - value), middle + value)
    return check_range(name, value, low, high)
