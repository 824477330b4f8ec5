"""Transforms that mix neighbouring pixels of one frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment import functional as F
from iivcl.augment._lazy import LazyClip
from iivcl.augment._transform import Transform, check_range, draw_uniform
from iivcl.augment.functional._filters import check_kernel_size

__all__ = ["GaussianBlur"]


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

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> BlurParams:
        """Draw the widths; see :meth:`Transform.make_params`."""
        return BlurParams(draw_uniform(video, generator, *self.sigma))

    def apply(self, video: Tensor, params: BlurParams) -> Tensor:  # type: ignore[override]
        """Blur; see :meth:`Transform.apply`."""
        return F.gaussian_blur(video, params.sigma, self.kernel_size)

    def _apply_lazily(self, clip: LazyClip, params: BlurParams) -> None:
        if not clip.is_colored():
            return super()._apply_lazily(clip, params)
        clip.blur(params.sigma, self.kernel_size)

    def __repr__(self) -> str:
        return f"GaussianBlur({self.kernel_size}, sigma={self.sigma})"
