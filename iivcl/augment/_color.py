"""Transforms of what pixels hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment import functional as F
from iivcl.augment._transform import Transform, check_probability, check_range, draw_uniform
from iivcl.augment.functional import _color_kernels as kernels
from iivcl.augment.functional._clip import check_unit_range, values_are_free

__all__ = ["ColorJitter", "Normalize", "RandomGrayscale", "RandomSolarize", "ToFloat"]


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


_KERNELS = (kernels.brightness_, kernels.contrast_, kernels.saturation_, kernels.hue_)


def _jitter_batched(video: Tensor, params: ColorJitterParams) -> Tensor:
    """All clips at once, whatever their orders are, without reading an order on the host.

    Three of the four operations blend with black, a mean gray or a gray, which makes them one.
    """
    orders = params.order.to(video.device, non_blocking=True)  # (B, 4)
    amounts = torch.stack(params[:4], dim=1).to(video.device, non_blocking=True)  # (B, 4)
    shift = amounts[:, 3].view(-1, 1, 1, 1, 1)
    video = video.clone()
    for position in range(4):
        op = orders[:, position : position + 1]  # (B, 1)
        factor = amounts.gather(1, op).view(-1, 1, 1, 1, 1)
        step = partial(_one_of_four_, op=op.view(-1, 1, 1, 1, 1), shift=shift)
        kernels.apply_(step, video, factor)
    return video


def _one_of_four_(
    values: Tensor, factor: Tensor | float, white: int, *, op: Tensor, shift: Tensor
) -> None:
    """Apply to every clip the operation that ``op`` (B, 1, 1, 1, 1) names."""
    gray = kernels.gray_level(values, white)  # (B, 1, T, H, W)
    mean = gray.mean(dim=(3, 4), keepdim=True)
    turned = values.clone()
    kernels.hue_(turned, shift, white)
    kernels.blend_(values, mean * (op == 1) + gray * (op == 2), factor, white)
    values.copy_(torch.where(op == 3, turned, values))


def _factor_range(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    bounds = value if isinstance(value, tuple) else (max(0.0, 1.0 - value), 1.0 + value)
    return check_range(name, bounds, 0.0)


class GrayscaleParams(NamedTuple):
    """Parameters of :class:`RandomGrayscale`."""

    where: Tensor
    """(B,) bool, the clips that turn gray."""


class RandomGrayscale(Transform[GrayscaleParams]):
    """Turn every clip gray with probability ``p``, keeping its channels.

    Args:
        p: Probability, in [0, 1].

    Example:
        >>> green = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1, 1)
        >>> RandomGrayscale(p=1.0)(green).flatten()
        tensor([149, 149, 149], dtype=torch.uint8)
    """

    def __init__(self, *, p: float = 0.2) -> None:
        super().__init__()
        self.p = check_probability(p)

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> GrayscaleParams:
        """Draw which clips turn gray; see :meth:`Transform.make_params`."""
        return GrayscaleParams(draw_uniform(video, generator) < self.p)

    def apply(self, video: Tensor, params: GrayscaleParams) -> Tensor:  # type: ignore[override]
        """Turn the chosen clips gray; see :meth:`Transform.apply`."""
        return F.to_grayscale(video, params.where)

    def __repr__(self) -> str:
        return f"RandomGrayscale(p={self.p})"


class SolarizeParams(NamedTuple):
    """Parameters of :class:`RandomSolarize`."""

    threshold: Tensor
    """(B,) as a share of the range; ``inf`` for clips that stay as they are."""


class RandomSolarize(Transform[SolarizeParams]):
    """Invert the bright pixels of every clip with probability ``p``.

    Args:
        threshold: Pixels at or above this share of the range are inverted, in [0, 1].
        p: Probability, in [0, 1].

    Example:
        >>> video = torch.tensor([0, 100, 128, 255], dtype=torch.uint8).view(1, 1, 1, 1, 4)
        >>> RandomSolarize(0.5, p=1.0)(video).flatten()
        tensor([  0, 100, 127,   0], dtype=torch.uint8)

    Source:
        Grill et al., "Bootstrap your own latent" (arXiv 2006.07733), appendix B.
    """

    def __init__(self, threshold: float = 0.5, *, p: float = 0.2) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1]; got {threshold}")
        self.threshold = threshold
        self.p = check_probability(p)

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> SolarizeParams:
        """Draw which clips are solarized; see :meth:`Transform.make_params`."""
        where = draw_uniform(video, generator) < self.p
        return SolarizeParams(torch.where(where, self.threshold, torch.inf))

    def apply(self, video: Tensor, params: SolarizeParams) -> Tensor:  # type: ignore[override]
        """Invert the bright pixels; see :meth:`Transform.apply`."""
        return F.solarize(video, params.threshold * kernels.white_of(video))

    def __repr__(self) -> str:
        return f"RandomSolarize({self.threshold}, p={self.p})"


class ToFloat(Transform[tuple[()]]):
    """Turn uint8 values 0..255 into floats within [0, 1]; floats keep their values.

    Args:
        dtype: Floating dtype of the result.

    Example:
        >>> ToFloat()(torch.full((1, 3, 8, 4, 4), 255, dtype=torch.uint8)).max()
        tensor(1.)
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[()]:
        """Nothing is random."""
        return ()

    def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
        """Convert; see :meth:`Transform.apply`."""
        return F.to_float(video, self.dtype)

    def __repr__(self) -> str:
        return f"ToFloat({self.dtype})"


class Normalize(Transform[tuple[()]]):
    """Compute ``(video - mean) / std`` per channel; uint8 goes through ``to_float`` first.

    Args:
        mean: One number per channel, on the scale [0, 1].
        std: One number above 0 per channel, on the scale [0, 1].

    Example:
        >>> normalize = Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
        >>> normalize(torch.full((1, 3, 1, 1, 1), 0.9)).flatten()
        tensor([2., 2., 2.])
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError(
                "`mean` and `std` must have one number per channel, and `std` must be above 0; "
                f"got {self.mean} and {self.std}"
            )

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[()]:
        """Nothing is random."""
        return ()

    def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
        """Normalise; see :meth:`Transform.apply`."""
        return F.normalize(video, mean=self.mean, std=self.std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"
