"""The shape of a residual video network: a stem and four stages of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from iivcl.backbones._convolution import PaddedConv3d
from iivcl.backbones._encoder import VideoEncoder, with_mean

__all__ = ["VideoResNet"]


class VideoResNet(VideoEncoder):
    """A video encoder of one stem and four stages of residual blocks, without a classifier.

    Made by `r3d_18`, `mc3_18`, `r2plus1d_18`, `slow_r50` and `slow_resnet`; use it directly to
    bring blocks of your own.

    Args:
        stem: Module from ``(B, C, T, H, W)`` to the input of the first block.
        stages: Four sequences of blocks.
        feature_dim: Channels of the last block.
        strides: See `VideoEncoder`.
        in_channels: Channels C of the video.
        gradient_checkpointing: See `VideoEncoder`.

    Raises:
        ValueError: There are not four stages.

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
        super().__init__(
            feature_dim=feature_dim,
            strides=strides,
            in_channels=in_channels,
            gradient_checkpointing=gradient_checkpointing,
        )
        if len(stages) != 4:
            raise ValueError(f"`stages` must be 4 sequences of blocks; got {len(stages)}")
        self.stem = stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        PaddedConv3d.convert_conv3d(self)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        x: Tensor = self.stem(video)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._run(block, x)
        return with_mean(x)
