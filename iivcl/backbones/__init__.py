"""Video encoders without a classifier, and the heads that follow them.

Every encoder maps ``(B, 3, T, H, W)`` to ``(B, feature_dim)``.
"""

from iivcl.backbones._adapter import as_encoder, inflate
from iivcl.backbones._convolution import PaddedConv3d, WrongConvolution, check_convolutions
from iivcl.backbones._encoder import VideoEncoder
from iivcl.backbones._heads import PredictionHead, ProjectionHead
from iivcl.backbones._resnet import VideoResNet
from iivcl.backbones._roi_head import RoIActionHead
from iivcl.backbones._slow import slow_r50, slow_resnet
from iivcl.backbones._split_norm import SplitBatchNorm
from iivcl.backbones._torchvision import mc3_18, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t
from iivcl.backbones._weights import LoadReport, load_weights

__all__ = [
    "LoadReport",
    "PaddedConv3d",
    "PredictionHead",
    "ProjectionHead",
    "RoIActionHead",
    "SplitBatchNorm",
    "VideoEncoder",
    "VideoResNet",
    "WrongConvolution",
    "as_encoder",
    "check_convolutions",
    "inflate",
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
