"""The shape that all encoders here share: a stem and four stages of residual blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .._checks import check_floating, check_shape

__all__ = ["VideoResNet"]


class VideoResNet(nn.Module):
    """A video encoder of one stem and four stages of residual blocks, without a classifier.

    Made by `r3d_18`, `mc3_18`, `r2plus1d_18`, `slow_r50` and `slow_resnet`; use it directly to
    bring blocks of your own.

    Args:
        stem: Module from ``(B, C, T, H, W)`` to the input of the first block.
        stages: Four sequences of blocks.
        feature_dim: Channels of the last block.
        strides: Input frames and input pixels per cell of the last feature map. A smaller video is
            refused: temporal or spatial kernels would see nothing but padding.
        in_channels: Channels C of the video.
        gradient_checkpointing: Keep only the input of every block and run the block again in the
            backward pass: about a third more time for a fraction of the memory, with the same
            gradients and the same running statistics (but compiled by torch 2.4, batch norm counts
            every batch twice in its statistics).

    Attributes:
        feature_dim: Channels of the encoder's output.
        strides: As given.
        gradient_checkpointing: May be switched between two steps.

    Example:
        >>> import torch
        >>> from iivcl.backbones import slow_resnet
        >>> backbone = slow_resnet(18)
        >>> backbone.feature_dim, backbone(torch.zeros(2, 3, 4, 32, 32)).shape
        (512, torch.Size([2, 512]))
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Sequential],
        *,
        feature_dim: int,
        strides: tuple[int, int],
        in_channels: int = 3,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(stages) != 4:
            raise ValueError(f"`stages` must be 4 sequences of blocks; got {len(stages)}")
        self.stem = stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
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
        x: Tensor = self.stem(video)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._run(block, x)
        return x

    def forward(self, video: Tensor) -> Tensor:
        """Return the feature map averaged over time and space.

        Args:
            video: ``(B, C, T, H, W)``, floating point, normalised.

        Returns:
            ``(B, feature_dim)``.
        """
        return F.adaptive_avg_pool3d(self.features(video), 1).flatten(1)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return block(x)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():  # the compiler itself keeps writes out of a second run
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
        return checkpoint(  # type: ignore[no-any-return]
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)),
        )

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
