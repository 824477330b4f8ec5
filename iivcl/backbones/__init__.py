"""Video encoders without a classifier, and the heads that follow them.

Every encoder maps ``(B, 3, T, H, W)`` to ``(B, feature_dim)``.
"""

from ._heads import PredictionHead, ProjectionHead
from ._resnet import VideoResNet
from ._slow import slow_r50, slow_resnet
from ._slowfast import LoadReport, load_slowfast_checkpoint
from ._torchvision import mc3_18, r2plus1d_18, r3d_18

__all__ = [
    "LoadReport",
    "PredictionHead",
    "ProjectionHead",
    "VideoResNet",
    "load_slowfast_checkpoint",
    "mc3_18",
    "r2plus1d_18",
    "r3d_18",
    "slow_r50",
    "slow_resnet",
]
