"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment._jitter_batched import jitter
from iivcl.augment._lazy import LazyClip
from iivcl.augment._transform import (
    Parts,
    Transform,
    check_range,
    draw_uniform,
    join,
    planes_of,
)
from iivcl.augment.functional import _color_kernels as kernels
from iivcl.augment.functional._clip import check_unit_range, values_are_free

__all__ = ["ColorJitter"]


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
        self.brightness = _factor_range("brightness", brightness)
        self.contrast = _factor_range("contrast", contrast)
        self.saturation = _factor_range("saturation", saturation)
        bounds = hue if isinstance(hue, tuple) else (-hue, hue)
        self.hue = check_range("hue", bounds, -0.5, 0.5)

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> ColorJitterParams:
        """Draw factors and order; see :meth:`Transform.make_params`."""
        return ColorJitterParams(
            brightness=draw_uniform(video, generator, *self.brightness),
            contrast=draw_uniform(video, generator, *self.contrast),
            saturation=draw_uniform(video, generator, *self.saturation),
            hue=draw_uniform(video, generator, *self.hue),
            order=draw_uniform(video, generator, columns=4).argsort(dim=1),
        )

    def apply(self, video: Tensor, params: ColorJitterParams) -> Tensor:  # type: ignore[override]
        """Change the colours; see :meth:`Transform.apply`."""
        check_unit_range(video)
        if values_are_free(video) and values_are_free(params.order):
            return _jitter_each(video, params)
        return join(_jitter_batched(planes_of([video]), params))

    def _apply_to_parts(self, parts: Parts, params: ColorJitterParams) -> Parts:
        planes = planes_of(parts)
        if len(planes) not in (1, 3):
            return super()._apply_to_parts(parts, params)
        return _jitter_batched(planes, params)

    def _apply_lazily(self, clip: LazyClip, params: ColorJitterParams) -> None:
        if not clip.is_colored():
            return super()._apply_lazily(clip, params)
        operations = (clip.brightness, clip.contrast, clip.saturation, clip.hue)
        for index in params.order.flatten().tolist():
            operations[index](params[index].item())

    def __repr__(self) -> str:
        brightness, contrast, saturation, hue = self._given
        return (
            f"ColorJitter(brightness={brightness}, contrast={contrast}, "
            f"saturation={saturation}, hue={hue})"
        )


def _jitter_each(video: Tensor, params: ColorJitterParams) -> Tensor:
    """Clip by clip, so that a clip pays for the four operations of its own order."""
    amounts = torch.stack(params[:4], dim=1).tolist()
    out = video.clone()
    for i, order in enumerate(params.order.tolist()):
        for index in order:
            kernels.apply_(_KERNELS[index], out[i : i + 1], amounts[i][index])
    return out


_KERNELS = (kernels.brightness_, kernels.contrast_, kernels.saturation_, kernels.hue)


def _jitter_batched(planes: list[Tensor], params: ColorJitterParams) -> list[Tensor]:
    """All clips at once: on an accelerator, and for a compiler."""
    device = planes[0].device
    *each, order = params  # torch 2.4 compiles no slice of a named tuple
    amounts = torch.stack(each, dim=1).to(device, non_blocking=True)  # (B, 4)
    return jitter(planes, amounts, order.to(device, non_blocking=True))


def _factor_range(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    bounds = value if isinstance(value, tuple) else (max(0.0, 1.0 - value), 1.0 + value)
    return check_range(name, bounds, 0.0)
