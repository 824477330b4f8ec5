"""Small random encoders of other libraries behind `as_encoder`; nothing is downloaded."""

from __future__ import annotations

import pytest
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from iivcl.backbones import VideoEncoder, as_encoder


def video_mae() -> VideoEncoder:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.VideoMAEModel(config)
    return as_encoder(model, feature_dim=24, strides=(2, 16), layout="BTCHW")


def v_jepa_2() -> VideoEncoder:
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        crop_size=32,
        frames_per_clip=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    model = transformers.VJEPA2Model(config).encoder
    return as_encoder(model, feature_dim=24, strides=(2, 16), layout="BTCHW")


def timm_vit() -> VideoEncoder:
    timm = pytest.importorskip("timm")
    options = {"pretrained": False, "img_size": 32, "num_classes": 0, "depth": 1}
    model = timm.create_model("vit_tiny_patch16_224", global_pool="", **options)
    options = {"feature_dim": 192, "strides": (1, 16), "layout": "BCHW"}
    return as_encoder(model, pool="first", prefix_tokens=1, **options)


def image_resnet() -> VideoEncoder:
    model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    return as_encoder(
        nn.Sequential(*list(model.children())[:-2]),
        feature_dim=512,
        strides=(1, 32),
        layout="BCHW",
    )
