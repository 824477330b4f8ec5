"""Linear maps of frames that work on rows and columns apart: resampling and blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iivcl._checks import common_dtype
from iivcl._precision import without_autocast
from iivcl.augment._constants import kept

__all__ = ["blurred_clip", "gaussian_taps", "gaussian_weights", "reflected", "resize_weights"]
__all__ += ["separable"]

_BLOCK = 16  # outputs of one banded product: small for few products by zero, large for speed


def separable(
    video: Tensor, vertical: Tensor, horizontal: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``vertical @ frame @ horizontal.T`` for every frame, each clip with its matrices.

    Integers keep their dtype and are rounded to the nearest.

    Args:
        video: (B, C, T, H, W).
        vertical: (B, h, H) weights, of which no row leaves the range of the pixels.
        horizontal: (B, w, W) weights, likewise.
        dtype: Of the products; by default that of the video, at least float32.

    Returns:
        (B, C, T, h, w) in the dtype of the video.
    """
    dtype = dtype or common_dtype(video)
    # With the rows of its frames side by side, a clip takes one product for each direction.
    rows_first = video.permute(0, 3, 1, 2, 4)  # (B, H, C, T, W)
    frames = rows_first.to(dtype, memory_format=torch.contiguous_format)
    b, height, c, t, width = frames.shape
    out_height, out_width = vertical.shape[1], horizontal.shape[1]
    with without_autocast(video):
        columns = vertical.to(dtype) @ frames.reshape(b, height, c * t * width)  # (B, h, CTW)
        pixels = columns.view(b, out_height * c * t, width) @ horizontal.to(dtype).mT  # (B, hCT, w)
    if not video.is_floating_point():
        pixels = pixels.round_()
    out = pixels.view(b, out_height, c, t, out_width).permute(0, 2, 3, 1, 4)
    return out.to(video.dtype, memory_format=torch.contiguous_format).contiguous()


def resize_weights(
    boxes: Tensor, in_size: Sequence[int], out_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Weights that resize boxes, bilinear with antialiasing.

    Output i of an axis is centred at ``start + (i + 1/2) * scale``, ``scale = length / out_size``,
    and weighs the pixels of the box by a triangle of half-width ``max(scale, 1)``.

    Args:
        boxes: (B, 4) top, left, height, width; floating.
        in_size: Height and width of the frame.
        out_size: Those wanted.

    Returns:
        (B, h, H) for the columns of a frame and (B, w, W) for its rows; each row sums to 1.
    """
    # Both axes go through at once, as if they had the size of the longer one.
    start, length = boxes.T.view(2, 2, -1, 1, 1).unbind(0)  # (2, B, 1, 1)
    scale = length / out_size[0]  # (2, B, 1, 1)
    if out_size[0] != out_size[1]:
        scale = torch.stack([length[0] / out_size[0], length[1] / out_size[1]])
    outputs = kept(_middles, max(out_size), boxes.dtype, like=boxes).view(-1, 1)
    pixels = kept(_middles, max(in_size), boxes.dtype, like=boxes)
    distance = (pixels - torch.addcmul(start, outputs, scale)).abs_()
    weights = (scale.clamp(min=1) - distance).clamp_(min=0)  # (2, B, h or w, H or W)
    weights = weights * ((pixels > start) & (pixels < start + length))
    vertical, horizontal = (weights / weights.sum(dim=-1, keepdim=True)).unbind(0)
    return vertical[:, : out_size[0], : in_size[0]], horizontal[:, : out_size[1], : in_size[1]]


def _middles(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where the pixels of an axis are centred."""
    return torch.arange(0.5, size, dtype=dtype, device=device)


def gaussian_taps(sigma: Tensor, kernel_size: int) -> Tensor:
    """Weights (B, kernel_size) of a Gaussian of width ``sigma`` (B,) pixels; they sum to 1."""
    radius = kernel_size // 2
    offsets = kept(torch.arange, -radius, radius + 1, like=sigma)
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
    source = kept(reflected, size, kernel_size // 2, like=sigma)
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
