"""Linear maps of frames that work on rows and columns apart: resampling and blur."""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._precision import without_autocast

__all__ = ["blurred_clip", "gaussian_taps", "gaussian_weights", "reflected", "resize_weights"]
__all__ += ["separable", "wide"]

_BLOCK = 16  # outputs of one banded product: small for few products by zero, large for speed


def wide(video: Tensor) -> torch.dtype:
    """The dtype to compute with: that of the video, at least float32."""
    return torch.promote_types(video.dtype, torch.float32)


def separable(
    video: Tensor, vertical: Tensor, horizontal: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``vertical @ frame @ horizontal.T`` for every frame, each clip with its matrices.

    Integers keep their dtype and are rounded to the nearest.

    Args:
        video: (B, C, T, H, W).
        vertical: (B, h, H) weights.
        horizontal: (B, w, W) weights.
        dtype: Of the products; by default that of ``video``, at least float32.

    Returns:
        (B, C, T, h, w) in the dtype of ``video``.
    """
    b, c, t, height, width = video.shape
    out_height, out_width = vertical.shape[1], horizontal.shape[1]
    dtype = dtype or wide(video)
    # With the rows of its frames side by side, a clip takes one product for each direction.
    frames = video.permute(0, 3, 1, 2, 4).reshape(b, height, c * t * width).to(dtype)
    with without_autocast(video):
        columns = vertical.to(dtype) @ frames  # (B, h, CTW)
        rows = columns.view(b, out_height * c * t, width) @ horizontal.to(dtype).mT  # (B, hCT, w)
    if not video.is_floating_point():
        rows = rows.round().clamp(0, 255)
    out = rows.view(b, out_height, c, t, out_width).permute(0, 2, 3, 1, 4)
    return out.to(video.dtype, memory_format=torch.contiguous_format).contiguous()


def resize_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Weights that resize the span [start, start + length) of an axis, bilinear with antialiasing.

    Output i is centred at ``start + (i + 1/2) * scale`` with ``scale = length / out_size``, and
    weighs the pixels of the span by a triangle of half-width ``max(scale, 1)``.

    Args:
        start: (B,) first pixel of the span, floating.
        length: (B,) pixels of the span.
        in_size: Pixels of the axis.
        out_size: Pixels wanted.

    Returns:
        (B, out_size, in_size), rows sum to 1.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / out_size
    outputs, pixels = (
        torch.arange(0.5, size, device=start.device, dtype=start.dtype)
        for size in (out_size, in_size)
    )
    centers = start + outputs.view(-1, 1) * scale
    weights = (1 - (pixels - centers).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(dim=-1, keepdim=True)


def gaussian_taps(sigma: Tensor, kernel_size: int) -> Tensor:
    """Weights (B, kernel_size) of a Gaussian of width ``sigma`` (B,) pixels; they sum to 1."""
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)) ** 2, dim=1)


def reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """Pixels (size, 2 * radius + 1) around each pixel of an axis, reflected at its ends.

    The end pixel is not repeated: -1 becomes 1, and ``size`` becomes ``size - 2``.
    """
    offsets = torch.arange(-radius, radius + 1, device=device)
    pixels = torch.arange(size, device=device).view(-1, 1) + offsets
    return (size - 1) - ((size - 1) - pixels.abs()).abs()


def gaussian_weights(sigma: Tensor, kernel_size: int, size: int) -> Tensor:
    """Weights that blur an axis with a Gaussian of ``kernel_size`` taps, reflected at the ends.

    Args:
        sigma: (B,) standard deviation in pixels.
        kernel_size: Odd number of taps, at most ``2 * size - 1``.
        size: Pixels of the axis.

    Returns:
        (B, size, size), rows sum to 1.
    """
    taps = gaussian_taps(sigma, kernel_size)
    source = reflected(size, kernel_size // 2, sigma.device)
    weights = taps.new_zeros(len(sigma), size, size)
    return weights.scatter_add(
        2, source.expand(len(sigma), -1, -1), taps.unsqueeze(1).expand(-1, size, -1)
    )


def blurred_clip(
    clip: Tensor, vertical: Tensor, horizontal: Tensor, radius: int, scratch: tuple[Tensor, Tensor]
) -> Tensor:
    """Compute what :func:`separable` does for one clip, whose matrices are zero off a band.

    A block of outputs reads only its own span of inputs, ``radius`` wider at both ends. With the
    rows of all frames side by side, both directions are few large products that write to their
    places. The result is a view of the first scratch, whose memory has that order.

    Args:
        clip: (C, T, H, W).
        vertical: (H, H) weights, zero where ``abs(i - j) > radius``.
        horizontal: (W, W) weights, likewise.
        radius: Half-width of the band.
        scratch: Two tensors of the size of ``clip`` to compute in, and in whose dtype. ``clip`` may
            be the second, and is lost then.
    """
    c, t, height, width = clip.shape
    vertical, horizontal = (weights.to(scratch[0].dtype) for weights in (vertical, horizontal))
    source, mixed = (memory.view(height, c * t * width) for memory in scratch)
    source.view(height, c, t, width).copy_(clip.permute(2, 0, 1, 3))
    with without_autocast(clip):
        for out, reach in _blocks(height, radius):
            torch.mm(vertical[out, reach], source[reach], out=mixed[out])
        source, mixed = mixed.view(-1, width), source.view(-1, width)
        for out, reach in _blocks(width, radius):
            torch.mm(source[:, reach], horizontal[out, reach].T, out=mixed[:, out])
    return mixed.view(height, c, t, width).permute(1, 2, 0, 3)


def _blocks(size: int, radius: int) -> list[tuple[slice, slice]]:
    """Spans of outputs, and the inputs that each of them reads."""
    spans = [(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    return [(slice(a, b), slice(max(0, a - radius), min(size, b + radius))) for a, b in spans]
