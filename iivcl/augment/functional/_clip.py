"""What every operation on a batch of clips needs: checks, per-clip numbers, per-clip choice.

Values are looked at on the CPU alone and never while a graph is being traced: on an accelerator
that look would make the host wait.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iivcl._checks import check_shape

_ROUNDING = 1e-3  # resampling and half precision may leave [0, 1] by this much


Rows = slice | list[int]
"""Some clips of a batch, as an index of the first axis."""


def check_video(video: Tensor) -> None:
    """Check that ``video`` is (B, C, T, H, W), uint8 or floating."""
    check_shape("video", video, "B C T H W")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise TypeError(f"`video` must be uint8 or floating-point; got {video.dtype}")


def check_channels(video: Tensor) -> None:
    """Check a video that is gray or RGB."""
    check_video(video)
    if video.shape[1] not in (1, 3):
        raise ValueError(
            f"`video` must have 1 or 3 channels; got {video.shape[1]} in shape "
            f"{tuple(video.shape)}, read as (B, C, T, H, W)"
        )


def check_unit_range(video: Tensor) -> None:
    """Check a gray or RGB video whose floats must be within [0, 1]."""
    check_channels(video)
    if video.is_floating_point() and video.numel() and values_are_free(video):
        low, high = (bound.item() for bound in torch.aminmax(video))
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"floating-point `video` must be within [0, 1]; got [{low:.4g}, {high:.4g}]. "
                "Normalize after the colour operations, and turn uint8 into floats with `to_float`"
            )


def values_are_free(tensor: Tensor) -> bool:
    """Whether Python may read the values of ``tensor`` without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def per_clip(
    name: str, value: Tensor, video: Tensor, low: float = -torch.inf, high: float = torch.inf
) -> Tensor:
    """Check one number per clip and shape it (B, 1, 1, 1, 1), on the device of ``video``."""
    check_shape(name, value, "B", B=(video.shape[0], "video"))
    if values_are_free(value) and not bool(((value >= low) & (value <= high)).all()):
        raise ValueError(f"`{name}` must be within [{low}, {high}]; got {value.tolist()}")
    return value.to(video.device, non_blocking=True).view(-1, 1, 1, 1, 1)


def check_mask(name: str, where: Tensor, num_clips: int) -> None:
    """Check that ``where`` says yes or no for every clip."""
    check_shape(name, where, "B", B=(num_clips, "video"))
    if where.dtype != torch.bool:
        raise TypeError(f"`{name}` must be a bool tensor; got {where.dtype}")


def choose_clips(where: Tensor, changed: Tensor, video: Tensor) -> Tensor:
    """Take the clips where ``where`` (B,) is true from ``changed``, the others from ``video``."""
    return torch.where(
        where.to(video.device, non_blocking=True).view(-1, 1, 1, 1, 1), changed, video
    )


def select_clips(
    name: str, where: Tensor, video: Tensor, changed: Callable[[Tensor, Rows], Tensor]
) -> Tensor:
    """Replace the clips where ``where`` is true by ``changed(clips, rows)``.

    On the CPU only those clips are computed. Elsewhere, picking them would make the host wait for
    their number, so that all clips are computed and the mask chooses.

    Args:
        name: Name of the mask, for the message.
        where: (B,) bool.
        video: (B, C, T, H, W).
        changed: From clips (N, C, T, H, W) and their rows in the batch to clips of the same
            shape and dtype. Rows index the first axis of any tensor of the batch.
    """
    check_mask(name, where, video.shape[0])
    if not values_are_free(video):
        return choose_clips(where, changed(video, slice(None)), video)
    rows = [row for row, chosen in enumerate(where.tolist()) if chosen]
    if not rows:
        return video
    if len(rows) == len(video):
        return changed(video, slice(None))
    out = video.clone()
    out[rows] = changed(video[rows], rows)
    return out
