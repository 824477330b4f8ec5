"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment._lazy import LazyClip
from iivcl.augment._transform import Transform, check_range, draw_uniform
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
        return _jitter_batched(video, params)

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


def _jitter_batched(video: Tensor, params: ColorJitterParams) -> Tensor:
    """All clips at once, whatever their orders are, without reading an order on the host.

    Three of the four operations blend with black, a mean gray or a gray, which makes them one.
    """
    *each, order = params  # torch 2.4 compiles no slice of a named tuple
    orders = order.to(video.device, non_blocking=True)  # (B, 4)
    amounts = torch.stack(each, dim=1).to(video.device, non_blocking=True)  # (B, 4)
    shift = amounts[:, 3].view(-1, 1, 1, 1, 1)
    video = video.clone()
    for position in range(4):
        op = orders[:, position : position + 1]  # (B, 1)
        factor = amounts.gather(1, op).view(-1, 1, 1, 1, 1)
        step = partial(_one_of_four, op=op.view(-1, 1, 1, 1, 1), shift=shift)
        kernels.apply_(step, video, factor)
    return video


def _one_of_four(
    values: Tensor, factor: Tensor | float, white: int, *, op: Tensor, shift: Tensor
) -> Tensor:
    """Apply to every clip the operation that ``op`` (B, 1, 1, 1, 1) names."""
    gray = kernels.gray_level(values, white)  # (B, 1, T, H, W)
    mean = gray.mean(dim=(3, 4), keepdim=True)
    turned = kernels.hue(values, shift, white)
    kernels.blend_(values, mean * (op == 1) + gray * (op == 2), factor, white)
    return torch.where(op == 3, turned, values)


def _factor_range(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    bounds = value if isinstance(value, tuple) else (max(0.0, 1.0 - value), 1.0 + value)
    return check_range(name, bounds, 0.0)
