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
    # With the rows of its frames side by side, a clip takes one product for each direction.
    frames = video.permute(0, 3, 1, 2, 4).reshape(b, height, c * t * width).to(dtype)
    with without_autocast(video):
        columns = vertical.to(dtype) @ frames  # (B, h, CTW)
        rows = columns.view(b, out_height * c * t, width) @ horizontal.to(dtype).mT  # (B, hCT, w)
    if not video.is_floating_point():
        rows = rows.round_().clamp_(0, 255)
    out = video.new_empty(b, c, t, out_height, out_width)
    return out.copy_(rows.view(b, out_height, c, t, out_width).permute(0, 2, 3, 1, 4))


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


def apply_taps(video: Tensor, taps: Tensor) -> Tensor:
    """Weigh every pixel and its neighbours, along rows and then along columns, frames reflected.

    A sum of shifted videos is slow as it stands: it is for a compiler, which makes one pass over
    memory of each direction.

    Args:
        video: (B, C, T, H, W).
        taps: (B, K) weights of an odd number of neighbours.

    Returns:
        (B, C, T, H, W) in the dtype of ``video``.
    """
    values = video.to(torch.promote_types(video.dtype, torch.float32))
    weights = taps.to(values.dtype).view(*taps.shape, 1, 1, 1, 1).unbind(1)  # K of (B, 1, 1, 1, 1)
    for axis in (4, 3):
        source = reflected(values.shape[axis], len(weights) // 2, video.device)  # (size, K)
        shifted = [values.index_select(axis, pixels) for pixels in source.unbind(1)]
        values = weights[0] * shifted[0]
        for weight, neighbor in zip(weights[1:], shifted[1:], strict=True):
            values = values + weight * neighbor
    if not video.is_floating_point():
        values = values.round()
    return values.to(video.dtype)


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
        (B, size, size) float32, rows sum to 1.
    """
    taps = gaussian_taps(sigma, kernel_size)
    source = reflected(size, kernel_size // 2, sigma.device)
    weights = taps.new_zeros(len(sigma), size, size)
    return weights.scatter_add(
        2, source.expand(len(sigma), -1, -1), taps.unsqueeze(1).expand(-1, size, -1)
    )
