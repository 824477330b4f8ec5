"""Arithmetic of colour, without checks.

A factor is a (B, 1, 1, 1, 1) tensor, or a Python number for all the clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12  # keeps 0 / chroma at 0 where a pixel is gray


def brightness(video: Tensor, factor: Tensor | float) -> Tensor:
    """Compute ``factor * video``, clamped."""
    return _clamp_like(video * factor, video)


def contrast(video: Tensor, factor: Tensor | float) -> Tensor:
    """Blend every frame with its mean gray level."""
    mean = gray_level(video).mean(dim=(1, 3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    return blend(video, mean, factor)


def saturation(video: Tensor, factor: Tensor | float) -> Tensor:
    """Blend every pixel with its gray level."""
    return video if video.shape[1] == 1 else blend(video, gray_level(video), factor)


def hue(video: Tensor, shift: Tensor | float) -> Tensor:
    """Turn the hue by a share of the circle."""
    if video.shape[1] == 1:
        return video
    if video.is_floating_point():
        rgb = video.to(torch.promote_types(video.dtype, torch.float32))
        return _turn_hue(rgb, 6 * shift).to(video.dtype)
    turned = _turn_hue(video / 255, 6 * shift)
    return turned.mul_(256 - 1e-3).to(video.dtype)  # equal bins: floor of [0, 256)


def blend(video: Tensor, other: Tensor, factor: Tensor | float) -> Tensor:
    """Compute ``factor * video + (1 - factor) * other``, clamped."""
    return _clamp_like((video * factor).add_((1 - factor) * other), video)


def gray_level(video: Tensor) -> Tensor:
    """Gray level (B, 1, T, H, W), a whole number for uint8 though its dtype is float32."""
    if video.shape[1] == 1:
        return video if video.is_floating_point() else video.float()
    red, green, blue = video.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return gray if video.is_floating_point() else gray.floor_()


def largest(video: Tensor) -> int:
    """The value of white."""
    return 1 if video.is_floating_point() else 255


def _clamp_like(values: Tensor, video: Tensor) -> Tensor:
    """Clamp fresh ``values`` to the range of ``video`` and return to its dtype."""
    return values.clamp_(0, largest(video)).to(video.dtype)


def _turn_hue(rgb: Tensor, sextants: Tensor | float) -> Tensor:
    """Turn the hue of (B, 3, T, H, W) by sixths of the circle, (B, 1, 1, 1, 1), in HSV.

    With chroma = max - min and every channel scaled to (channel - min) / chroma, the hue in sixths
    is ``1 - red + green + blue`` on the green side of red and its negative on the blue side. Back
    from a hue h, each channel is a clipped triangle of h. So no case needs a mask: on the CPU a
    comparison and a choice cost more than all the arithmetic.
    """
    red, green, blue = rgb.unsqueeze(2).unbind(1)  # (B, 1, T, H, W) each
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    hue = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp(min=_TINY)).add_(1)
    hue = hue.copysign_(green - blue).add_(sextants)
    hue = hue.sub_(torch.floor(hue / 6), alpha=6)  # [0, 6]
    weights = ((hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    channels = [torch.addcmul(lowest, w.clamp_(0, 1), chroma) for w in weights]
    return torch.cat(channels, dim=1)
