"""Video encoders without a classifier, and the heads that follow them.

Every encoder maps ``(B, 3, T, H, W)`` to ``(B, feature_dim)``.
"""

from ._adapter import as_encoder
from ._encoder import VideoEncoder
from ._heads import PredictionHead, ProjectionHead
from ._resnet import VideoResNet
from ._slow import slow_r50, slow_resnet
from ._split_norm import SplitBatchNorm
from ._torchvision import mc3_18, r2plus1d_18, r3d_18, s3d
from ._transformers import mvit_v2_s, swin3d_t
from ._weights import LoadReport, load_weights

__all__ = [
    "LoadReport",
    "PredictionHead",
    "ProjectionHead",
    "SplitBatchNorm",
    "VideoEncoder",
    "VideoResNet",
    "as_encoder",
    "load_weights",
    "mc3_18",
    "mvit_v2_s",
    "r2plus1d_18",
    "r3d_18",
    "s3d",
    "slow_r50",
    "slow_resnet",
    "swin3d_t",
]
