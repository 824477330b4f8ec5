"""The video transformers of torchvision, with the classifier removed."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import WeightsEnum, video

from iivcl.backbones._convolution import PaddedConv3d
from iivcl.backbones._encoder import VideoEncoder, with_mean

__all__ = ["mvit_v2_s", "swin3d_t"]


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
