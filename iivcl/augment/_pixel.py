"""Transforms of what pixels hold, but for jitter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl._checks import check_within
from iivcl.augment import _program as ops
from iivcl.augment._arguments import (
    check_dtype,
    check_kernel_size,
    check_mean_std,
    check_probability,
    check_range,
)
from iivcl.augment._transform import Drawn, Range, Transform, chance

__all__ = ["GaussianBlur", "Normalize", "RandomGrayscale", "RandomSolarize", "ToFloat"]


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

    def describe(self, params: GrayscaleParams) -> ops.Program:
        """Turn the chosen clips gray; see :meth:`Transform.describe`."""
        return (ops.Where(params.where, (ops.Gray(),)),)

    def _ranges(self) -> Sequence[Range]:
        return (chance(self.p),)

    def _read(self, drawn: Drawn) -> GrayscaleParams:
        return GrayscaleParams(drawn.chances(1).squeeze(1))

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
        check_within(0, 1, threshold=threshold)
        self.threshold = threshold
        self.p = check_probability(p)

    def describe(self, params: SolarizeParams) -> ops.Program:
        """Invert the bright pixels; see :meth:`Transform.describe`."""
        return (ops.Solarize(params.threshold),)

    def _ranges(self) -> Sequence[Range]:
        return (chance(self.p),)

    def _read(self, drawn: Drawn) -> SolarizeParams:
        everywhere = torch.full_like(drawn.numbers(1).squeeze(1), self.threshold)
        return SolarizeParams(everywhere.masked_fill(~drawn.chances(1).squeeze(1), torch.inf))

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
        check_dtype(dtype)
        self.dtype = dtype

    def describe(self, params: tuple[()]) -> ops.Program:
        """Convert; see :meth:`Transform.describe`."""
        return (ops.ToFloat(self.dtype),)

    def __repr__(self) -> str:
        return f"ToFloat({self.dtype})"


class Normalize(Transform[tuple[()]]):
    """Compute ``(video - mean) / std`` per channel; uint8 goes through ``to_float`` first.

    Args:
        mean: One number per channel, on the scale [0, 1].
        std: One number above 0 per channel, on the scale [0, 1].
        dtype: Of the result, which alone is rounded to it: bfloat16 for an encoder under autocast.
            By default that of the video, float32 for uint8.
        memory_format: Of the result: ``torch.channels_last_3d`` for convolutions that want it.

    Example:
        >>> normalize = Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
        >>> normalize(torch.full((1, 3, 1, 1, 1), 0.9)).flatten()
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.mean, self.std = check_mean_std(mean, std)
        if dtype is not None:
            check_dtype(dtype)
        self.dtype, self.memory_format = dtype, memory_format

    def describe(self, params: tuple[()]) -> ops.Program:
        """Normalise; see :meth:`Transform.describe`."""
        normalize = ops.Normalize(self.mean, self.std, self.dtype)
        if self.memory_format == torch.contiguous_format:
            return (normalize,)
        return normalize, ops.Layout(self.memory_format)

    def __repr__(self) -> str:
        dtype = f", dtype={self.dtype}" if self.dtype else ""
        is_usual = self.memory_format == torch.contiguous_format
        layout = "" if is_usual else f", memory_format={self.memory_format}"
        return f"Normalize(mean={self.mean}, std={self.std}{dtype}{layout})"


class BlurParams(NamedTuple):
    """Parameters of :class:`GaussianBlur`."""

    sigma: Tensor
    """(B,) standard deviation in pixels."""


class GaussianBlur(Transform[BlurParams]):
    """Blur every clip with a Gaussian of random width.

    Args:
        kernel_size: Odd number of taps.
        sigma: Range of the standard deviation in pixels, above 0.

    Example:
        >>> blur = GaussianBlur(11, sigma=(0.1, 2.0))
        >>> blur(torch.rand(2, 3, 8, 32, 32)).shape
        torch.Size([2, 3, 8, 32, 32])

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning" (arXiv 2002.05709), appendix A.
    """

    def __init__(self, kernel_size: int, *, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        self.kernel_size = kernel_size
        self.sigma = check_range("sigma", sigma, 1e-6)

    def describe(self, params: BlurParams) -> ops.Program:
        """Blur; see :meth:`Transform.describe`."""
        return (ops.Blur(params.sigma, self.kernel_size),)

    def _ranges(self) -> Sequence[Range]:
        return (self.sigma,)

    def _read(self, drawn: Drawn) -> BlurParams:
        return BlurParams(drawn.numbers(1).squeeze(1))

    def __repr__(self) -> str:
        return f"GaussianBlur({self.kernel_size}, sigma={self.sigma})"
