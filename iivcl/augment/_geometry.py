"""Transforms of where pixels come from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.augment import functional as F
from iivcl.augment._transform import Transform, check_probability, check_range, draw_uniform
from iivcl.augment.functional._geometry import check_size, short_side_size

__all__ = ["CenterCrop", "RandomHorizontalFlip", "RandomResizedCrop", "ResizeShortSide"]


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

    _ATTEMPTS = 10

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

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> CropParams:
        """Draw the boxes; see :meth:`Transform.make_params`."""
        frame_height, frame_width = video.shape[-2:]
        n = self._ATTEMPTS
        share = draw_uniform(video, generator, *self.scale, columns=n)  # (B, n)
        log_ratio = draw_uniform(
            video, generator, math.log(self.ratio[0]), math.log(self.ratio[1]), columns=n
        )
        corner = draw_uniform(video, generator, columns=2)  # (B, 2)

        area, ratio = share * (frame_height * frame_width), log_ratio.exp()
        heights = (area / ratio).sqrt().round().long()
        widths = (area * ratio).sqrt().round().long()
        fits = (heights >= 1) & (heights <= frame_height) & (widths >= 1) & (widths <= frame_width)
        first = fits.int().argmax(dim=1, keepdim=True)
        fallback = self._largest_central(frame_height, frame_width)
        found = fits.any(dim=1)
        height = torch.where(found, heights.gather(1, first)[:, 0], fallback[0])
        width = torch.where(found, widths.gather(1, first)[:, 0], fallback[1])

        rest = torch.stack([frame_height - height, frame_width - width], dim=1)  # (B, 2)
        drawn = (corner * (rest + 1)).long().minimum(rest)
        top, left = torch.where(found.unsqueeze(1), drawn, rest // 2).unbind(1)
        return CropParams(torch.stack([top, left, height, width], dim=1))

    def _largest_central(self, height: int, width: int) -> tuple[int, int]:
        low, high = self.ratio
        if width < low * height:
            return max(1, round(width / low)), width
        if width > high * height:
            return height, max(1, round(height * high))
        return height, width

    def apply(self, video: Tensor, params: CropParams) -> Tensor:  # type: ignore[override]
        """Crop and resize; see :meth:`Transform.apply`."""
        return F.crop_resize(video, params.boxes, self.size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result, whatever the frame has."""
        return self.size

    def __repr__(self) -> str:
        low, high = self.ratio
        return (
            f"RandomResizedCrop({_size(self.size)}, scale={self.scale}, "
            f"ratio=({low:.4g}, {high:.4g}))"
        )


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

    _by_channel = True

    def __init__(self, *, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability(p)

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> FlipParams:
        """Draw which clips are mirrored; see :meth:`Transform.make_params`."""
        return FlipParams(draw_uniform(video, generator) < self.p)

    def apply(self, video: Tensor, params: FlipParams) -> Tensor:  # type: ignore[override]
        """Mirror the chosen clips; see :meth:`Transform.apply`."""
        return F.horizontal_flip(video, params.flip)

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
        self.size = check_size(size)[0]

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[()]:
        """Nothing is random."""
        return ()

    def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
        """Resize; see :meth:`Transform.apply`."""
        return F.resize_short_side(video, self.size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        return short_side_size(height, width, self.size)

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

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[()]:
        """Nothing is random."""
        return ()

    def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
        """Crop; see :meth:`Transform.apply`."""
        return F.center_crop(video, self.size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        return self.size

    def __repr__(self) -> str:
        return f"CenterCrop({_size(self.size)})"


def _size(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else str(size)
