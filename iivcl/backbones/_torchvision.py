"""The video networks of torchvision, with the classifier removed."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import WeightsEnum, video

from iivcl._checks import check_positive
from iivcl.backbones._convolution import PaddedConv3d
from iivcl.backbones._encoder import VideoEncoder, with_mean
from iivcl.backbones._resnet import VideoResNet

__all__ = ["mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t"]


def r3d_18(
    *, weights: WeightsEnum | str | None = None, gradient_checkpointing: bool = False
) -> VideoResNet:
    """Build R3D-18: 3x3x3 convolutions, 512 features, time and space reduced by 8 and 16.

    The names in the state dict are torchvision's, without ``fc``.

    Args:
        weights: As in ``torchvision.models.video.r3d_18``, such as ``"KINETICS400_V1"``.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with T >= 8 and H, W >= 16 to ``(B, 512)``.

    Example:
        >>> import torch
        >>> r3d_18().features(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 512, 1, 2, 2])

    Source:
        Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition",
        arXiv 1711.11248, section 3.2.
    """
    return _without_classifier(video.r3d_18(weights=weights), (8, 16), gradient_checkpointing)


def mc3_18(
    *, weights: WeightsEnum | str | None = None, gradient_checkpointing: bool = False
) -> VideoResNet:
    """Build MC3-18: 3D convolutions in the first stage only, time never reduced, space by 16.

    The names in the state dict are torchvision's, without ``fc``.

    Args:
        weights: As in ``torchvision.models.video.mc3_18``, such as ``"KINETICS400_V1"``.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with H, W >= 16 to ``(B, 512)``.

    Example:
        >>> import torch
        >>> mc3_18().features(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 512, 8, 2, 2])

    Source:
        Tran et al., arXiv 1711.11248, section 3.3.
    """
    return _without_classifier(video.mc3_18(weights=weights), (1, 16), gradient_checkpointing)


def r2plus1d_18(
    *, weights: WeightsEnum | str | None = None, gradient_checkpointing: bool = False
) -> VideoResNet:
    """Build R(2+1)D-18: each 3D convolution is a spatial and then a temporal one.

    The names in the state dict are torchvision's, without ``fc``.

    Args:
        weights: As in ``torchvision.models.video.r2plus1d_18``, such as ``"KINETICS400_V1"``.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with T >= 8 and H, W >= 16 to ``(B, 512)``.

    Example:
        >>> import torch
        >>> r2plus1d_18().features(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 512, 1, 2, 2])

    Source:
        Tran et al., arXiv 1711.11248, section 3.5.
    """
    return _without_classifier(video.r2plus1d_18(weights=weights), (8, 16), gradient_checkpointing)


def s3d(
    *,
    weights: WeightsEnum | str | None = None,
    norm_eps: float = 1e-3,
    gradient_checkpointing: bool = False,
) -> VideoEncoder:
    """Build S3D: separable Inception blocks, 1024 features, time and space reduced by 8 and 32.

    The names in the state dict are torchvision's with ``stages.`` for ``features.``, without
    ``classifier``. torchvision averages windows of 2x7x7 cells and then their outputs; for
    16 frames of 224x224 pixels, a single window, that is the mean over the map, as here.

    Args:
        weights: As in ``torchvision.models.video.s3d``, such as ``"KINETICS400_V1"``.
        norm_eps: What batch norm adds to the variance: torchvision's, or 1e-5 for CoCLR's weights.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with T >= 8 and H, W >= 32 to ``(B, 1024)``.

    Raises:
        TypeError: ``norm_eps`` is not a number.
        ValueError: ``norm_eps`` is not above 0.

    Example:
        >>> import torch
        >>> s3d().features(torch.zeros(2, 3, 8, 64, 64)).shape
        torch.Size([2, 1024, 1, 2, 2])

    Source:
        Xie et al., "Rethinking Spatiotemporal Feature Learning", arXiv 1712.04851, section 4.
    """
    check_positive("norm_eps", norm_eps)
    model = video.s3d(weights=weights)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = norm_eps
    return _S3D(model, gradient_checkpointing)


def mvit_v2_s(
    *, weights: WeightsEnum | str | None = None, gradient_checkpointing: bool = False
) -> VideoEncoder:
    """Build MViTv2-S: attention over pooled tokens, time and space reduced by 2 and 32.

    The vector of a clip is the class token, and the map holds the other tokens. Tables of relative
    positions are made for 16 frames of 224x224 pixels; for clips of other sizes, which
    torchvision's own model refuses, they are interpolated. The names in the state dict are
    torchvision's, without ``head``.

    Args:
        weights: As in ``torchvision.models.video.mvit_v2_s``, such as ``"KINETICS400_V1"``.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with T >= 2 and H, W >= 32 to ``(B, 768)``.

    Example:
        >>> import torch
        >>> mvit_v2_s().features(torch.zeros(1, 3, 4, 64, 64)).shape
        torch.Size([1, 768, 2, 2, 2])

    Source:
        Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and
        Detection", arXiv 2112.01526, section 4.
    """
    return _MViT(video.mvit_v2_s(weights=weights), gradient_checkpointing)


def swin3d_t(
    *, weights: WeightsEnum | str | None = None, gradient_checkpointing: bool = False
) -> VideoEncoder:
    """Build Video Swin-T: attention in shifted 3D windows, time and space reduced by 2 and 32.

    The names in the state dict are torchvision's with ``stages.`` for ``features.``, without
    ``head``.

    Args:
        weights: As in ``torchvision.models.video.swin3d_t``, such as ``"KINETICS400_V1"``.
        gradient_checkpointing: See `VideoEncoder`.

    Returns:
        The encoder, from ``(B, 3, T, H, W)`` with T >= 2 and H, W >= 32 to ``(B, 768)``.

    Example:
        >>> import torch
        >>> swin3d_t().features(torch.zeros(1, 3, 4, 64, 64)).shape
        torch.Size([1, 768, 2, 2, 2])

    Source:
        Liu et al., "Video Swin Transformer", arXiv 2106.13230, section 3.
    """
    return _Swin3D(video.swin3d_t(weights=weights), gradient_checkpointing)


def _without_classifier(
    model: video.VideoResNet, strides: tuple[int, int], gradient_checkpointing: bool
) -> VideoResNet:
    return VideoResNet(
        model.stem,
        [model.layer1, model.layer2, model.layer3, model.layer4],
        feature_dim=512,
        strides=strides,
        gradient_checkpointing=gradient_checkpointing,
    )


class _S3D(VideoEncoder):
    def __init__(self, model: video.S3D, gradient_checkpointing: bool) -> None:
        super().__init__(
            feature_dim=1024, strides=(8, 32), gradient_checkpointing=gradient_checkpointing
        )
        self.stages = model.features
        PaddedConv3d.convert_conv3d(self)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        x = video
        for stage in self.stages:
            x = self._run(stage, x)
        return with_mean(x)


class _MViT(VideoEncoder):
    def __init__(self, model: video.MViT, gradient_checkpointing: bool) -> None:
        super().__init__(
            feature_dim=768, strides=(2, 32), gradient_checkpointing=gradient_checkpointing
        )
        self.conv_proj = model.conv_proj
        self.pos_encoding = model.pos_encoding
        self.blocks = model.blocks
        self.norm = model.norm
        PaddedConv3d.convert_conv3d(self)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_proj(video)  # (B, 96, T / 2, H / 4, W / 4)
        thw = tuple(x.shape[2:])
        x = self.pos_encoding(x.flatten(2).transpose(1, 2))  # (B, 1 + tokens, 96), class first
        for block in self.blocks:
            x, thw = self._run(block, x, thw)
        x = self.norm(x)
        return x[:, 1:].transpose(1, 2).unflatten(2, thw), x[:, 0]


class _Swin3D(VideoEncoder):
    def __init__(self, model: video.SwinTransformer3d, gradient_checkpointing: bool) -> None:
        super().__init__(
            feature_dim=768, strides=(2, 32), gradient_checkpointing=gradient_checkpointing
        )
        self.patch_embed = model.patch_embed
        self.pos_drop = model.pos_drop
        self.stages = model.features
        self.norm = model.norm

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pos_drop(self.patch_embed(video))  # (B, T / 2, H / 4, W / 4, 96)
        for stage in self.stages:
            # A stage of blocks, or the layer between two stages that halves the map.
            for block in stage if isinstance(stage, nn.Sequential) else (stage,):
                x = self._run(block, x)
        return with_mean(self.norm(x).permute(0, 4, 1, 2, 3))
