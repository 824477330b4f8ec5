"""Encoders small enough that a test can train them, for `--backbone tiny_encoder:...`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iivcl.backbones import VideoEncoder


class Tiny(nn.Sequential):
    """Two convolutions in blocks, and a mean: (B, 3, T, H, W) to (B, 16)."""

    feature_dim = 16

    def __init__(self, norm: bool) -> None:
        def block(inputs: int, outputs: int) -> nn.Sequential:
            convolution = nn.Conv3d(inputs, outputs, 3, 2, 1)
            return nn.Sequential(
                convolution, nn.BatchNorm3d(outputs) if norm else nn.Identity(), nn.ReLU()
            )

        super().__init__(block(3, 8), block(8, 16), nn.AdaptiveAvgPool3d(1), nn.Flatten())


def with_norm() -> nn.Module:
    return Tiny(norm=True)


def without_norm() -> nn.Module:
    return Tiny(norm=False)


class Constant(Tiny):
    """An encoder that has collapsed."""

    def forward(self, video: Tensor) -> Tensor:
        return super().forward(video) * 0 + torch.ones(())


def collapsed() -> nn.Module:
    return Constant(norm=False)


class TinyMap(VideoEncoder):
    """An encoder with a feature map of a quarter of the pixels, and kernels over time."""

    def __init__(self) -> None:
        super().__init__(feature_dim=32, strides=(1, 4))
        self.layers = nn.Sequential(
            *(nn.Conv3d(3, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(16), nn.ReLU()),
            *(nn.Conv3d(16, 32, 3, (1, 2, 2), 1), nn.BatchNorm3d(32), nn.ReLU()),
        )

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        cells: Tensor = self.layers(video)
        return cells, cells.mean(dim=(2, 3, 4))


def with_map() -> nn.Module:
    return TinyMap()
