"""What all encoders share: the check of the video, the two outputs, the checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from iivcl._checks import check_at_least, check_floating, check_shape, is_integer

__all__ = ["VideoEncoder"]


class VideoEncoder(nn.Module):
    """A video network without a classifier: what every builder of `iivcl.backbones` returns.

    Subclasses write `_encode`.

    Args:
        feature_dim: Channels of the encoder's output.
        strides: Input frames and input pixels per cell of the last feature map. A smaller video is
            refused: temporal or spatial kernels would see nothing but padding.
        in_channels: Channels C of the video.
        gradient_checkpointing: Keep only the input of every block and run the block again in the
            backward pass: about a third more time for a fraction of the memory, with the same
            gradients and the same running statistics (but compiled by torch 2.4, batch norm counts
            every batch twice in its statistics).

    Attributes:
        feature_dim: As given.
        strides: As given.
        in_channels: As given.
        gradient_checkpointing: May be switched between two steps.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        strides: tuple[int, int],
        in_channels: int = 3,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, feature_dim=feature_dim, in_channels=in_channels)
        strides = tuple(strides) if isinstance(strides, list) else strides
        if not (isinstance(strides, tuple) and all(map(is_integer, strides)) and len(strides) == 2):
            raise TypeError(
                f"`strides` must be two integers, of frames and pixels; got {strides!r}"
            )
        if min(strides) < 1:
            raise ValueError(f"`strides` must be at least 1; got {strides}")
        self.feature_dim = feature_dim
        self.strides = strides
        self.in_channels = in_channels
        self.gradient_checkpointing = gradient_checkpointing

    def features(self, video: Tensor) -> Tensor:
        """Return the last feature map, before pooling.

        Args:
            video: ``(B, C, T, H, W)``, floating point, normalised.

        Returns:
            ``(B, feature_dim, T', H', W')``.

        Raises:
            TypeError: The video is not floating point.
            ValueError: The video has the wrong channels, too few frames or too few pixels.
        """
        self._check(video)
        return self._encode(video)[0]

    def forward(self, video: Tensor) -> Tensor:
        """Return one vector per clip: the mean of the feature map, or a network's own summary.

        Args:
            video: ``(B, C, T, H, W)``, floating point, normalised.

        Returns:
            ``(B, feature_dim)``.
        """
        self._check(video)
        return self._encode(video)[1]

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map ``(B, feature_dim, T', H', W')`` and the vector ``(B, feature_dim)``."""
        raise NotImplementedError

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        if not (self.gradient_checkpointing and self.training):
            return block(*inputs)
        again: dict[str, Any] = {}
        if not torch.compiler.is_compiling():  # which itself keeps writes out of a second run
            again["context_fn"] = lambda: (contextlib.nullcontext(), _statistics_kept(block))
        return checkpoint(block, *inputs, use_reentrant=False, **again)

    def _check(self, video: Tensor) -> None:
        check_shape("video", video, "B C T H W", C=(self.in_channels, "in_channels"))
        check_floating("video", video)
        frames, pixels = self.strides
        T, H, W = video.shape[2:]
        if frames > T or pixels > min(H, W):
            raise ValueError(
                f"`video` must have at least {frames} frames of {pixels}x{pixels} pixels for the "
                f"strides of this backbone; got {T} frames of {H}x{W}"
            )


def with_mean(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """Pair a map ``(B, F, T', H', W')`` with its mean over time and space."""
    return feature_map, F.adaptive_avg_pool3d(feature_map, 1).flatten(1)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Run ``block`` again without counting its batch twice in the running statistics."""
    norms = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in block.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    ]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, num_batches_tracked in norms:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
