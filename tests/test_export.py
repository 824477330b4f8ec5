"""Every encoder through torch.export and ONNX: the features are those of the encoder itself.

Blocks that repeat one before are left out, which export alike; the example exports whole networks.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pretraining
import pytest
import torch
import torchvision
from torch import Tensor, nn

from iivcl.backbones import (
    PaddedConv3d,
    VideoEncoder,
    as_encoder,
    inflate,
    mc3_18,
    mvit_v2_s,
    r2plus1d_18,
    r3d_18,
    s3d,
    slow_resnet,
    swin3d_t,
)

LIMIT = 200  # seconds of CPU for one encoder: MViT needs 60, most of them for ONNX's optimizer


def residual(encoder: nn.Module) -> nn.Module:
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        del stage[2:]
    return encoder


def short_mvit() -> VideoEncoder:
    encoder = mvit_v2_s()
    encoder.blocks = nn.ModuleList([*encoder.blocks[:4], *encoder.blocks[14:]])
    return encoder


def short_swin() -> VideoEncoder:
    encoder = swin3d_t()
    del encoder.stages[4][2:]
    return encoder


def dilated_slow() -> nn.Module:
    return residual(slow_resnet(50, res5_dilation=2))


def padded() -> nn.Module:
    """A model of somebody's own, converted."""
    model = nn.Sequential(nn.Conv3d(3, 8, (5, 3, 3), padding="same"), nn.BatchNorm3d(8), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool3d(1), nn.Flatten()])
    return PaddedConv3d.convert_conv3d(model)


def frame_by_frame() -> VideoEncoder:
    trunk = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    return as_encoder(trunk, feature_dim=512, strides=(1, 32), layout="BCHW")


def inflated() -> VideoEncoder:
    trunk = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    return as_encoder(inflate(trunk), feature_dim=512, strides=(1, 32))


def video_mae() -> VideoEncoder:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = transformers.VideoMAEModel(config)
    return as_encoder(model, feature_dim=24, strides=(2, 16), layout="BTCHW")


def timm_vit() -> VideoEncoder:
    timm = pytest.importorskip("timm")
    options = {"pretrained": False, "img_size": 32, "num_classes": 0, "depth": 1}
    model = timm.create_model("vit_tiny_patch16_224", global_pool="", **options)
    options = {"feature_dim": 192, "strides": (1, 16), "layout": "BCHW"}
    return as_encoder(model, pool="first", prefix_tokens=1, **options)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "slow_resnet": lambda: residual(slow_resnet(50)),
    "slow_resnet, dilated": dilated_slow,
    "r3d_18": r3d_18,
    "mc3_18": mc3_18,
    "r2plus1d_18": r2plus1d_18,
    "s3d": s3d,
    "mvit_v2_s": short_mvit,
    "swin3d_t": short_swin,
    "PaddedConv3d": padded,
    "as_encoder, BCHW": frame_by_frame,
    "as_encoder, inflated": inflated,
    "as_encoder, VideoMAE": video_mae,
    "as_encoder, timm": timm_vit,
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Give an encoder whose features are of the order of 1, and clips that it takes."""
    torch.manual_seed(0)
    encoder = BUILDERS[name]()
    frames, size = (8, 32) if name[:2] in ("r3", "mc", "r2", "s3") else (4, 32)
    clips = torch.randn(2, 3, frames, size, size)
    norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the statistics of one batch
    if norms:
        encoder.train()(torch.randn(8, 3, frames, 2 * size, 2 * size))
    return encoder.eval().requires_grad_(False), clips


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of exporters about themselves
@pytest.mark.parametrize("name", BUILDERS)
def test_torch_export(name: str) -> None:
    encoder, clips = build(name)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(encoder, (clips,), dynamic_shapes=(batch,), strict=False)
    for asked in clips, torch.randn(3, *clips.shape[1:]), clips[:1]:
        torch.testing.assert_close(program.module()(asked), encoder(asked))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_onnx(name: str, tmp_path: Path) -> None:
    """In a process of its own: an exporter that does not end is ended and named."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("the exporter of torch 2.6 and later")
    command = [sys.executable, __file__, name, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        pytest.fail(f"{name} is not exported to ONNX after {LIMIT} s")
    assert done.returncode == 0, done.stderr[-2000:]
    difference = float(done.stdout.split()[-1])
    assert difference <= 1e-4


@torch.no_grad()
def check_onnx(name: str, file: Path) -> float:
    encoder, clips = build(name)
    script = pretraining.load("export")
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(encoder, (clips,), dynamic_shapes=(batch,), strict=False)
    with script.exporting():
        run = script.write_onnx(program, file)
    expected = [encoder(asked) for asked in (clips, clips[:1])]
    assert all(0.1 < features.abs().max() < 20 for features in expected)
    found = [run(asked) for asked in (clips, clips[:1])]
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
    print(check_onnx(sys.argv[1], Path(sys.argv[2])))
