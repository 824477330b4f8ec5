"""Resizing by the kernels of torch for images, which on the CPU beat matrix products by far."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as NF
from torch import Tensor

from iivcl._checks import common_dtype

__all__ = ["native_resize"]


def native_resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (..., H, W), bilinear with antialiasing, in its dtype."""
    if frames.shape[-2:] == (height, width):
        return frames
    shape = (*frames.shape[:-2], height, width)
    if frames.numel() == 0:
        return frames.new_empty(shape)
    # Frames are independent, so any four make up an "image": with its channels last, that is the
    # layout which the native uint8 kernel of the CPU runs fastest on.
    planes = math.prod(shape[:-2])
    group = 4 if planes % 4 == 0 else 3 if planes % 3 == 0 else 1
    images = frames.reshape(-1, group, *frames.shape[-2:])
    if frames.dtype == torch.uint8:
        return _planar(_antialiased(_interleaved(images), height, width)).view(shape)
    wide = images.to(common_dtype(frames))
    if width == 1:  # the kernel for floats is wrong there, but right for columns turned into rows
        return _antialiased(wide.mT, width, height).mT.to(frames.dtype).reshape(shape)
    return _antialiased(wide, height, width).to(frames.dtype).view(shape)


def _interleaved(images: Tensor) -> Tensor:
    """Put uint8 images (N, C, H, W) into channels-last order, four bytes at a time if possible."""
    planes = images.unbind(1)
    if len(planes) != 4:
        return torch.stack(planes, dim=-1).movedim(-1, 1)
    pixels = planes[0].to(torch.int32)  # (N, H, W)
    for i in (1, 2, 3):
        pixels.add_(planes[i].to(torch.int32), alpha=1 << 8 * i)
    return pixels.unsqueeze(-1).view(torch.uint8).movedim(-1, 1)


def _planar(images: Tensor) -> Tensor:
    """Undo :func:`_interleaved`."""
    n, channels, height, width = images.shape
    if channels != 4:
        return images.contiguous()
    pixels = images.permute(0, 2, 3, 1).contiguous().view(torch.int32).squeeze(-1)  # (N, H, W)
    planes = images.new_empty(n, 4, height, width)
    for i in range(4):
        planes[:, i] = pixels >> 8 * i  # of which uint8 keeps the lowest byte
    return planes


def _antialiased(images: Tensor, height: int, width: int) -> Tensor:
    return NF.interpolate(images, (height, width), mode="bilinear", antialias=True)
