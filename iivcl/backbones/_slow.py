"""The Slow pathway of SlowFast on its own: the encoder of rho-MoCo."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from iivcl._checks import check_at_least, check_choice
from iivcl.backbones._resnet import VideoResNet

__all__ = ["slow_r50", "slow_resnet"]

_NUM_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_TEMPORAL_KERNELS = (1, 1, 3, 3)  # res2 to res5: motion is looked at late, on small maps


def slow_r50(
    *, res5_dilation: Literal[1, 2] = 1, in_channels: int = 3, gradient_checkpointing: bool = False
) -> VideoResNet:
    """Build Slow R50, the encoder of rho-MoCo: `slow_resnet` of depth 50.

    Args:
        res5_dilation: See `slow_resnet`.
        in_channels: See `slow_resnet`.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with H, W >= 32 to ``(B, 2048)``; 8 frames of
        224x224 pixels in the published recipe.

    Example:
        >>> import torch
        >>> slow_r50().features(torch.zeros(1, 3, 4, 64, 64)).shape
        torch.Size([1, 2048, 4, 2, 2])

    Source:
        Feichtenhofer et al., "A Large-Scale Study on Unsupervised Spatiotemporal Representation
        Learning", arXiv 2104.14558, section 4.
    """
    return slow_resnet(
        50,
        res5_dilation=res5_dilation,
        in_channels=in_channels,
        gradient_checkpointing=gradient_checkpointing,
    )


def slow_resnet(
    depth: Literal[18, 50, 101],
    *,
    res5_dilation: Literal[1, 2] = 1,
    in_channels: int = 3,
    gradient_checkpointing: bool = False,
) -> VideoResNet:
    """Build the Slow pathway as a network of its own: a ResNet whose time axis is never reduced.

    The stem is a 1x7x7 convolution; the first convolution of every block of res4 and res5 spans 3
    frames, and all others 1. Frames in are frames out, and space is reduced by 32.

    Args:
        depth: Layers: 18 has blocks of two 3x3 convolutions and 512 features; 50 and 101 have
            bottlenecks and 2048 features.
        res5_dilation: 2 keeps the resolution of res4 through res5 (stride 1, dilation 2), as
            detectors ask; the parameters are the same.
        in_channels: Channels of the video: 3 for RGB, 2 for optical flow.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, in_channels, T, H, W)`` to ``(B, feature_dim)``.

    Raises:
        ValueError: ``depth`` or ``res5_dilation`` is not one of the choices.

    Example:
        >>> import torch
        >>> slow_resnet(18, res5_dilation=2).features(torch.zeros(1, 3, 4, 64, 64)).shape
        torch.Size([1, 512, 4, 4, 4])

    Source:
        Feichtenhofer et al., "SlowFast Networks for Video Recognition", arXiv 1812.03982, table 1.
    """
    check_choice("depth", depth, tuple(_NUM_BLOCKS))
    check_choice("res5_dilation", res5_dilation, (1, 2))
    check_at_least(1, in_channels=in_channels)

    stem = _conv_norm(in_channels, 64, (1, 7), stride=2)
    stem.add_module("relu", nn.ReLU(inplace=True))
    stem.add_module("pool", nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
    expansion = 1 if depth == 18 else 4
    stages, width = [], 64  # width: channels that enter the next block
    for stage, (num_blocks, temporal_kernel) in enumerate(
        zip(_NUM_BLOCKS[depth], _TEMPORAL_KERNELS, strict=True)
    ):
        channels = 64 * 2**stage
        dilation = res5_dilation if stage == 3 else 1
        blocks = nn.Sequential()
        for index in range(num_blocks):
            stride = 2 if index == 0 and stage > 0 and dilation == 1 else 1
            blocks.append(_Block(width, channels, expansion, temporal_kernel, stride, dilation))
            width = channels * expansion
        stages.append(blocks)

    model = VideoResNet(
        stem,
        stages,
        feature_dim=width,
        strides=(1, 32 // res5_dilation),
        in_channels=in_channels,
        gradient_checkpointing=gradient_checkpointing,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class _Block(nn.Module):
    """Residual block: ``relu(shortcut(x) + branch(x))``."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        expansion: int,
        temporal_kernel: int,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        out_channels = channels * expansion
        if expansion == 1:
            layers = [
                _conv_norm(in_channels, channels, (temporal_kernel, 3), stride, dilation),
                _conv_norm(channels, out_channels, (1, 3), 1, dilation),
            ]
        else:
            layers = [
                _conv_norm(in_channels, channels, (temporal_kernel, 1)),
                _conv_norm(channels, channels, (1, 3), stride, dilation),
                _conv_norm(channels, out_channels, (1, 1)),
            ]
        for layer in layers[:-1]:
            layer.add_module("relu", nn.ReLU(inplace=True))
        self.branch = nn.Sequential(OrderedDict(zip("abc", layers, strict=False)))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = _conv_norm(in_channels, out_channels, (1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x), inplace=True)


def _conv_norm(
    in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolve ``kernel`` = (frames, pixels) with "same" padding, then normalise."""
    frames, pixels = kernel
    conv = nn.Conv3d(
        in_channels,
        out_channels,
        (frames, pixels, pixels),
        stride=(1, stride, stride),
        padding=(frames // 2, dilation * (pixels // 2), dilation * (pixels // 2)),
        dilation=(1, dilation, dilation),
        bias=False,
    )
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm3d(out_channels)))
