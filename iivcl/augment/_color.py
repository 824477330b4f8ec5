"""Transforms of what pixels hold, but for jitter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment import functional as F
from iivcl.augment._lazy import LazyClip
from iivcl.augment._transform import (
    Parts,
    Transform,
    check_probability,
    draw_uniform,
    planes_of,
)
from iivcl.augment.functional import _color_kernels as kernels
from iivcl.augment.functional._clip import check_mask, choose_clips

__all__ = ["Normalize", "RandomGrayscale", "RandomSolarize", "ToFloat"]


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

    def _apply_to_parts(self, parts: Parts, params: GrayscaleParams) -> Parts:
        planes = planes_of(parts)
        if len(planes) != 3:
            return super()._apply_to_parts(parts, params)
        check_mask("where", params.where, len(planes[0]))
        gray = kernels.gray_of(planes, kernels.white_of(planes[0])).to(planes[0].dtype)
        return [choose_clips(params.where, gray, plane) for plane in planes]

    def _apply_lazily(self, clip: LazyClip, params: GrayscaleParams) -> None:
        if not clip.is_colored():
            return super()._apply_lazily(clip, params)
        check_mask("where", params.where, 1)
        if params.where.item():
            clip.gray()

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

    _by_channel = True

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

    _by_channel = True

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if not dtype.is_floating_point:
            raise TypeError(f"`dtype` must be a floating-point dtype; got {dtype}")
        self.dtype = dtype

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[()]:
        """Nothing is random."""
        return ()

    def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
        """Convert; see :meth:`Transform.apply`."""
        return F.to_float(video, self.dtype)

    def _apply_lazily(self, clip: LazyClip, params: tuple[()]) -> None:
        if clip.dtype != torch.uint8:
            return super()._apply_lazily(clip, params)
        clip.to_float(self.dtype)

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

    def _apply_to_parts(self, parts: Parts, params: tuple[()]) -> Parts:
        planes = planes_of(parts)
        if len(parts) == 1 or len(planes) != len(self.mean):
            return super()._apply_to_parts(parts, params)
        each = zip(planes, self.mean, self.std, strict=True)
        return [F.normalize(plane, mean=[mean], std=[std]) for plane, mean, std in each]

    def _apply_lazily(self, clip: LazyClip, params: tuple[()]) -> None:
        if not (clip.is_colored() and len(self.mean) == clip.shape[1]):
            return super()._apply_lazily(clip, params)
        clip.normalize(self.mean, self.std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"
