"""Every encoder through torch.export and ONNX: the features are those of the encoder itself.

Blocks that repeat one before are left out, which export alike; the example exports whole networks.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pretraining
import pytest
import torch
import torchvision
from adapted import image_resnet, timm_vit, video_mae
from torch import Tensor, nn
from torch.export import ExportedProgram

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of exporters about themselves
]
LIMIT = 200  # seconds of CPU for MViT, which was known to hang, and needs half a minute


def residual(encoder: nn.Module) -> nn.Module:
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        del stage[1:]
    return encoder


def short_mvit() -> VideoEncoder:
    encoder = mvit_v2_s()
    encoder.blocks = nn.ModuleList([encoder.blocks[i] for i in (0, 1, 3, 14)])
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


def inflated() -> VideoEncoder:
    trunk = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    return as_encoder(inflate(trunk), feature_dim=512, strides=(1, 32))


Exported = tuple[str, nn.Module, Tensor, ExportedProgram]
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "slow_resnet": lambda: residual(slow_resnet(50)),
    "slow_resnet, dilated": dilated_slow,
    "r3d_18": lambda: residual(r3d_18()),
    "mc3_18": lambda: residual(mc3_18()),
    "r2plus1d_18": lambda: residual(r2plus1d_18()),
    "s3d": s3d,
    "mvit_v2_s": short_mvit,
    "swin3d_t": short_swin,
    "PaddedConv3d": padded,
    "as_encoder, BCHW": image_resnet,
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


def program_of(encoder: nn.Module, clips: Tensor) -> ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(encoder, (clips,), dynamic_shapes=(batch,), strict=False)


def largest_difference(run: Callable[[Tensor], Tensor], encoder: nn.Module, clips: Tensor) -> float:
    """Compare batches of the size that was exported, and of others."""
    compare = pretraining.load("export").compare  # over the largest feature
    batches = clips, clips[:1], torch.randn(3, *clips.shape[1:])
    return float(torch.tensor([compare(run, encoder, asked) for asked in batches]).max())


@pytest.fixture(scope="module", params=BUILDERS)
def exported(request: pytest.FixtureRequest) -> Exported:
    encoder, clips = build(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, encoder, clips, program_of(encoder, clips)


def test_torch_export(exported: Exported) -> None:
    _, encoder, clips, program = exported
    assert largest_difference(program.module(), encoder, clips) <= 1e-5


def test_onnx(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("the exporter of torch 2.6 and later")
    name, encoder, clips, program = exported
    if name == "mvit_v2_s":
        difference = in_a_process_of_its_own(name, tmp_path / "model.onnx")
    else:
        run = pretraining.load("export").write_onnx(program, tmp_path / "model.onnx")
        difference = largest_difference(run, encoder, clips)
    assert difference <= 1e-4


def in_a_process_of_its_own(name: str, file: Path) -> float:
    """Give the difference; an exporter that does not end is ended and named."""
    command = [sys.executable, __file__, name, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        pytest.fail(f"{name} is not exported to ONNX after {LIMIT} s")
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
    asked, asked_clips = build(sys.argv[1])
    onnx = pretraining.load("export").write_onnx(program_of(asked, asked_clips), Path(sys.argv[2]))
    print(largest_difference(onnx, asked, asked_clips))
