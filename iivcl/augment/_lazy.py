"""Colours of one clip, computed as late as possible: the form that presets take on the CPU.

A pass over a clip costs what it reads and writes, hardly what it computes. Brightness, contrast,
saturation, gray and normalization are affine in the pixels, with numbers that hold for a frame.
Only hue and the clamps in between keep a chain of them from being one affine map, and a factor of
at most 1 cannot leave [0, 1], so that its clamp changes nothing and the map goes on growing. A blur
commutes with the map, and so does hue as long as no channel mixes with another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iivcl.augment.functional import _color_kernels as kernels
from iivcl.augment.functional._clip import per_clip
from iivcl.augment.functional._filters import blur_clip, check_reach

__all__ = ["LazyClip", "Scratch"]

_GRAY = sum(kernels.GRAY)  # gray level of a pixel that is 1 in all channels: not quite 1


class Scratch:
    """Memory in which one clip after the other is computed.

    On the CPU, fresh memory of the size of a clip costs more than the arithmetic.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.Size, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Give the memory of this name, whatever it held."""
        key = name, shape, dtype
        if key not in self._held:
            self._held[key] = torch.empty(shape, dtype=dtype)
        return self._held[key]


class LazyClip:
    """A clip and what is still to be done with it: ``scale * x + mix * gray(x) + bias``.

    Args:
        video: (1, C, T, H, W) uint8 or floating; it is never written to.
        scratch: What its colours are computed in.
    """

    def __init__(self, video: Tensor, scratch: Scratch) -> None:
        self._scratch, self._turn = scratch, 0
        self.replace(video)

    def replace(self, video: Tensor) -> None:
        """Go on with another video, to which nothing is left to be done."""
        self.shape, self.dtype = video.shape, video.dtype  # of the result
        self._video = video  # a gray one may have a single channel
        self._is_own = False  # whether it may be written to
        self._is_result = True
        self._is_within_range: bool | None = None  # [0, 1]; None: not looked at
        self._scale, self._mix = 1.0, 0.0
        self._bias: float | Tensor = 0.0  # a number, or one for each frame (T, 1, 1)
        self._mean: Sequence[float] = [0.0] * self.shape[1]
        self._std: Sequence[float] = [1.0] * self.shape[1]

    def is_colored(self) -> bool:
        """Whether this is a float RGB clip within [0, 1], on which the operations below work."""
        if not self.dtype.is_floating_point or self.shape[1] != 3 or self.shape.numel() == 0:
            return False
        if self._is_within_range is None:
            low, high = torch.aminmax(self._video)
            self._is_within_range = bool((low >= 0) & (high <= 1))
        return self._is_within_range

    def to_float(self, dtype: torch.dtype) -> None:
        """Turn uint8 into floats within [0, 1]."""
        self.dtype = dtype
        self._scale, self._is_within_range, self._is_result = 1 / 255, True, False

    def brightness(self, factor: float) -> None:
        """Multiply by ``factor`` and clamp."""
        self._blend(factor)

    def contrast(self, factor: float) -> None:
        """Blend every frame with its mean gray level and clamp."""
        values = self._values()
        means = values.mean((3, 4)).squeeze(0)  # (C, T)
        weights = kernels.GRAY if len(means) == 3 else [_GRAY]
        level = (means.new_tensor(weights).unsqueeze(1) * means).sum(0).view(-1, 1, 1) * (
            self._scale + self._mix * _GRAY
        )
        self._blend(factor, constant=(1 - factor) * (level + _GRAY * self._bias))

    def saturation(self, factor: float) -> None:
        """Blend every pixel with its gray level and clamp."""
        self._blend(factor, gray=1 - factor)

    def hue(self, shift: float) -> None:
        """Turn the hue by a share of the circle."""
        if self._mix:
            self._compute()
        values = self._values()
        if values.shape[1] == 1:
            return
        spare = self._spare()
        scratch = [self._take(f"plane {i}", values[:, :1].shape) for i in range(4)]
        self._video = kernels.hue(values, shift, 1, out=spare, scratch=scratch)

    def gray(self) -> None:
        """Turn gray."""
        self._blend(0.0, gray=1.0)

    def blur(self, sigma: Tensor, kernel_size: int) -> None:
        """Blur every frame with a Gaussian of width ``sigma`` (1,)."""
        if self._mix:
            self._compute()
        values = self._values()
        check_reach(kernel_size, values)
        sigma = per_clip("sigma", sigma, values, low=1e-6)
        scratch = self._spare(), self._take(f"values {1 - self._turn}", values.shape)
        self._video = blur_clip(values[0], sigma, kernel_size, scratch).unsqueeze(0)

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Compute ``(x - mean) / std`` per channel; any operation after it needs the result."""
        self._mean, self._std = mean, std
        self._is_within_range = self._is_result = False

    def result(self, out: Tensor | None = None) -> Tensor:
        """Do what is left to be done.

        Args:
            out: (1, C, T, H, W) to write to; by default fresh memory, or that of the video itself
                when nothing is left.

        Returns:
            (1, C, T, H, W).
        """
        if self._is_result:
            return self._video if out is None else out.copy_(self._video)
        if out is None:
            out = torch.empty(self.shape, dtype=self.dtype)
        if self._mix:
            self._compute()
        values = self._values().expand(self.shape)
        channels = list(zip(self._mean, self._std, strict=True))
        alike = len(set(channels)) == 1
        for i, (mean, std) in enumerate(channels[:1] if alike else channels):
            span = slice(None) if alike else slice(i, i + 1)
            bias = torch.as_tensor((self._bias - mean) / std, dtype=values.dtype)
            torch.add(bias, values[:, span], alpha=self._scale / std, out=out[:, span])
        return out

    def _values(self) -> Tensor:
        """Numbers (1, C, T, H, W) that may be written to, C 3 or 1, as wide as float32."""
        if not self._is_own:
            self._video = self._spare().copy_(self._video)
            self._is_own, self._is_result = True, False
        return self._video

    def _spare(self) -> Tensor:
        """Memory for values, other than that of the values so far, which it takes the turn of."""
        self._turn = 1 - self._turn
        return self._take(f"values {self._turn}", self._video.shape)

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        return self._scratch.take(name, shape, torch.promote_types(self.dtype, torch.float32))

    def _blend(self, keep: float, *, gray: float = 0.0, constant: float | Tensor = 0.0) -> None:
        """Compute ``keep * v + gray * gray(v) + constant`` of the value ``v`` so far, and clamp."""
        self._is_result = False
        self._mix = keep * self._mix + gray * (self._scale + _GRAY * self._mix)
        self._scale = keep * self._scale
        self._bias = (keep + _GRAY * gray) * self._bias + constant
        if keep > 1:
            self._compute()
            self._video.clamp_(0, 1)

    def _compute(self) -> None:
        """Do what is left to be done, but for normalization."""
        values, bias = self._values(), self._bias
        if values.shape[1] == 1:
            self._scale, self._mix = self._scale + _GRAY * self._mix, 0.0
        if self._mix:
            level = self._take("level", values[:, :1].shape)  # (1, 1, T, H, W)
            red, green, blue = values.unsqueeze(2).unbind(1)
            torch.mul(red, self._mix * kernels.GRAY[0], out=level)
            level.add_(green, alpha=self._mix * kernels.GRAY[1])
            level.add_(blue, alpha=self._mix * kernels.GRAY[2])
            bias = level.add_(bias)
        if self._mix and self._scale == 0:  # gray, for which one channel will do
            self._video = torch.as_tensor(bias)
        else:
            bias = torch.as_tensor(bias, dtype=values.dtype)
            torch.add(bias, values, alpha=self._scale, out=values)
        self._scale, self._mix, self._bias = 1.0, 0.0, 0.0
