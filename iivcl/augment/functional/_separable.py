"""Linear maps of frames that work on rows and columns apart, as two batched matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._precision import without_autocast

# Outputs of one banded product: small for few products by zero, large for speed.
_BLOCK, _CPU_BLOCK = 32, 16


def apply_separable(video: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Compute ``vertical @ frame @ horizontal.T`` for every frame, each clip with its matrices.

    Integers keep their dtype and are rounded to the nearest.

    Args:
        video: (B, C, T, H, W).
        vertical: (B, h, H) weights, float32.
        horizontal: (B, w, W) weights, float32.

    Returns:
        (B, C, T, h, w) in the dtype of ``video``.
    """
    b, c, t, height, width = video.shape
    out_height, out_width = vertical.shape[1], horizontal.shape[1]
    dtype = _dtype_of_products(video)
    rows = video.to(dtype).reshape(b, c * t * height, width)
    with without_autocast(video):
        rows = rows @ horizontal.to(dtype).mT  # (B, CTH, w)
        frames = rows.view(b, c * t, height, out_width)
        frames = vertical.to(dtype).unsqueeze(1) @ frames  # (B, CT, h, w)
    if not video.is_floating_point():
        frames = frames.round().clamp(0, 255)
    return frames.to(video.dtype).view(b, c, t, out_height, out_width)


def _dtype_of_products(video: Tensor) -> torch.dtype:
    """float16 holds 0..255 exactly and runs on tensor cores, which sum in float32."""
    if video.dtype == torch.uint8 and video.device.type == "cuda":
        return torch.float16
    return torch.promote_types(video.dtype, torch.float32)


def apply_banded(video: Tensor, vertical: Tensor, horizontal: Tensor, radius: int) -> Tensor:
    """Compute what :func:`apply_separable` does, for square matrices that are zero off a band.

    A block of outputs reads only its own span of inputs, ``radius`` wider at both ends: with 224
    pixels and 23 taps that is a quarter of the products.

    Args:
        video: (B, C, T, H, W).
        vertical: (B, H, H) weights, zero where ``abs(i - j) > radius``.
        horizontal: (B, W, W) weights, likewise.
        radius: Half-width of the band.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``.
    """
    b, c, t, height, width = video.shape
    dtype = torch.promote_types(video.dtype, torch.float32)
    rows = video.to(dtype).reshape(b, c * t * height, width)
    across, down = horizontal.to(dtype).mT, vertical.to(dtype).unsqueeze(1)
    with without_autocast(video):
        spans = _blocks(width, radius, _BLOCK)
        rows = torch.cat([rows[..., reach] @ across[:, reach, out] for out, reach in spans], -1)
        frames = rows.view(b, c * t, height, width)
        spans = _blocks(height, radius, _BLOCK)
        parts = [down[..., out, reach] @ frames[..., reach, :] for out, reach in spans]
        blurred = torch.cat(parts, dim=-2)
    if not video.is_floating_point():
        blurred = blurred.round_()
    return blurred.to(video.dtype).view(video.shape)


def apply_banded_to_clip(
    clip: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    radius: int,
    scratch: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute what :func:`apply_banded` does for one clip (C, T, H, W), as the CPU likes it.

    With the rows of all frames side by side, both directions are few large products that write to
    their places. The result is a view of the first scratch, whose memory has that order.

    Args:
        clip: (C, T, H, W).
        vertical: (H, H) weights, zero where ``abs(i - j) > radius``.
        horizontal: (W, W) weights, likewise.
        radius: Half-width of the band.
        scratch: Two tensors of the size of ``clip``, as wide as float32, to compute in. ``clip``
            may be the second, and is lost then. By default fresh memory.
    """
    c, t, height, width = clip.shape
    dtype = torch.promote_types(clip.dtype, torch.float32)
    vertical, horizontal = vertical.to(dtype), horizontal.to(dtype)
    if scratch is None:
        scratch = torch.empty(clip.shape, dtype=dtype), torch.empty(clip.shape, dtype=dtype)
    source, mixed = (memory.view(height, c * t * width) for memory in scratch)
    source.view(height, c, t, width).copy_(clip.permute(2, 0, 1, 3))
    for out, reach in _blocks(height, radius, _CPU_BLOCK):
        torch.mm(vertical[out, reach], source[reach], out=mixed[out])
    source, mixed = mixed.view(-1, width), source.view(-1, width)
    for out, reach in _blocks(width, radius, _CPU_BLOCK):
        torch.mm(source[:, reach], horizontal[out, reach].T, out=mixed[:, out])
    if not clip.is_floating_point():
        mixed.round_()
    return mixed.view(height, c, t, width).permute(1, 2, 0, 3).to(clip.dtype)


def _blocks(size: int, radius: int, block: int) -> list[tuple[slice, slice]]:
    """Spans of outputs, and the inputs that each of them reads."""
    spans = [(start, min(start + block, size)) for start in range(0, size, block)]
    return [(slice(a, b), slice(max(0, a - radius), min(size, b + radius))) for a, b in spans]


def resize_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Weights that resize the span [start, start + length) of an axis, bilinear with antialiasing.

    Output i is centred at ``start + (i + 1/2) * scale`` with ``scale = length / out_size``, and
    weighs the pixels of the span by a triangle of half-width ``max(scale, 1)``.

    Args:
        start: (B,) first pixel of the span.
        length: (B,) pixels of the span.
        in_size: Pixels of the axis.
        out_size: Pixels wanted.

    Returns:
        (B, out_size, in_size) float32, rows sum to 1.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / out_size
    centers = start + (torch.arange(out_size, device=start.device).view(-1, 1) + 0.5) * scale
    pixels = torch.arange(in_size, device=start.device) + 0.5
    weights = (1 - (pixels - centers).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(dim=-1, keepdim=True)


def gaussian_weights(sigma: Tensor, kernel_size: int, size: int) -> Tensor:
    """Weights that blur an axis with a Gaussian of ``kernel_size`` taps, reflected at the ends.

    Args:
        sigma: (B,) standard deviation in pixels.
        kernel_size: Odd number of taps, at most ``2 * size - 1``.
        size: Pixels of the axis.

    Returns:
        (B, size, size) float32, rows sum to 1.
    """
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)) ** 2, dim=1)  # (B, kernel_size)
    # Reflection without repeating the end pixel: -1 -> 1, size -> size - 2.
    source = torch.arange(size, device=sigma.device).view(-1, 1) + offsets  # (size, kernel_size)
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    weights = taps.new_zeros(len(sigma), size, size)
    return weights.scatter_add(
        2, source.expand(len(sigma), -1, -1), taps.unsqueeze(1).expand(-1, size, -1)
    )
