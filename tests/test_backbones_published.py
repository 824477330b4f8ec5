"""Published checkpoints by their own key names and shapes: what is loaded, and what is left.

Nothing is downloaded: `published.py` writes the files down. Where a network is run, it is run
straight on the original names, so that nothing of the implementation stands in for the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from published import (
    MIXED,
    State,
    coclr_file,
    coclr_layers,
    empty,
    make_state,
    moco_file,
    numbered,
    pyslowfast_layers,
    rho_file,
)
from torch import Tensor, nn
from torch.nn import functional as F

from iivcl.backbones import (
    SplitBatchNorm,
    VideoEncoder,
    as_encoder,
    inflate,
    load_weights,
    s3d,
    slow_r50,
)

RHO_FILES = (
    "MoCo_SlowR50_8x8_T2_epoch_00200.pyth",
    "BYOL_SlowR50_8x8_T2_epoch_00200.pyth",
    "SimCLR_SlowR50_8x8_T2_epoch_00200.pyth",
    "SwAV_SlowR50_8x8_T2_epoch_00200.pyth",
    "MoCo_SlowR50_8x8_T4_epoch_00200.pyth",
    "BYOL_SlowR50_8x8_T4_epoch_00200.pyth",
    "BYOL_SlowR50_16x4_T4_epoch_00200.pyth",
)


def save(content: dict[str, object], path: Path) -> set[str]:
    """Write a checkpoint; give the names in its state dict as they are in the file."""
    torch.save(content, path)
    key = "model_state" if "model_state" in content else "state_dict"
    return {f"{key}.{name}" for name in content[key]}  # type: ignore[attr-defined]


def numbers(module: nn.Module) -> dict[str, float]:
    """Give the number that fills every tensor."""
    state = module.state_dict()
    assert all((value == value.flatten()[0]).all() for value in state.values())
    return {name: value.flatten()[0].item() for name, value in state.items()}


@pytest.fixture(scope="module")
def backbone() -> VideoEncoder:
    """A Slow R50 whose every tensor the tests overwrite."""
    return empty(slow_r50)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """An image network without its classifier, alike."""
    module = empty(torchvision.models.resnet50)
    module.fc = nn.Identity()
    return module


@pytest.mark.parametrize("file", RHO_FILES)
def test_rho_files_give_the_query_encoder(
    file: str, backbone: VideoEncoder, tmp_path: Path
) -> None:
    names = save(rho_file(file.partition("_")[0]), tmp_path / file)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(0)
    report = load_weights(backbone, tmp_path / file)
    assert (report.missing, report.prefix) == ([], "model_state.backbone.")
    # Of every tensor its number, in the order of the layers, which is the same.
    assert sorted(numbers(backbone).values()) == list(range(1, 1 + len(backbone.state_dict())))
    query = {f"{report.prefix}{name}" for name in numbered(pyslowfast_layers())}
    assert set(report.unused) == names - query


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("form", ["network", "encoder"])
def test_moco_for_images(form: str, version: int, network: nn.Module, tmp_path: Path) -> None:
    content, path = moco_file(version), tmp_path / "moco.pth.tar"
    names = save(content, path)
    encoder = as_encoder(network, feature_dim=2048, strides=(1, 32), layout="BCHW")
    report = load_weights(encoder if form == "encoder" else network, path)
    assert (report.missing, report.prefix) == ([], "state_dict.module.encoder_q.")
    state = content["state_dict"]
    assert numbers(network) == {
        name: state[f"module.encoder_q.{name}"].flatten()[0].item()  # type: ignore[index]
        for name in network.state_dict()
    }
    query = {f"{report.prefix}{name}" for name in network.state_dict()}
    assert set(report.unused) == names - query


def test_moco_for_images_goes_on_as_a_video_network(network: nn.Module, tmp_path: Path) -> None:
    """Loaded into the layers for images, and made 3D afterwards; not the other way round."""
    save(moco_file(2), tmp_path / "moco.pth.tar")
    load_weights(network, tmp_path / "moco.pth.tar")
    options = {"feature_dim": 2048, "strides": (1, 32)}
    deep = as_encoder(inflate(network), **options)
    kernel = deep.module.layer1[0].conv2.weight
    assert kernel.shape == (64, 64, 3, 3, 3)
    torch.testing.assert_close(kernel[:, :, 1], network.layer1[0].conv2.weight)
    assert not kernel[:, :, ::2].any()
    with pytest.raises(ValueError, match=r"conv1\.weight \(64, 3, 7, 7\) instead of \(64, 3, 3, "):
        load_weights(deep, tmp_path / "moco.pth.tar")


def run_coclr(state: State, video: Tensor) -> Tensor:
    """Run S3D in eval mode straight on CoCLR's names."""

    def conv(x: Tensor, name: str, end: str = "", stride: tuple[int, ...] = (1, 1, 1)) -> Tensor:
        kernel = state[f"{name}.conv{end}.weight"]
        x = F.conv3d(x, kernel, stride=stride, padding=[size // 2 for size in kernel.shape[2:]])
        norm = f"{name}.bn{end}"
        parts = [state[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-5).relu()

    def separable(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = conv(x, name, "1", (1, stride, stride))
        return conv(x, name, "2", (stride, 1, 1))

    def mixed(x: Tensor, name: str) -> Tensor:
        branches = [
            conv(x, f"{name}.branch0.0"),
            *(separable(conv(x, f"{name}.branch{b}.0"), f"{name}.branch{b}.1") for b in (1, 2)),
            conv(F.max_pool3d(x, 3, 1, 1), f"{name}.branch3.1"),
        ]
        return torch.cat(branches, dim=1)

    x = separable(video, "Conv_1a", stride=2)
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = separable(conv(x, "Conv_2b"), "Conv_2c")
    pools = {
        "Mixed_3b": lambda x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        "Mixed_4b": lambda x: F.max_pool3d(x, 3, 2, 1),
        "Mixed_5b": lambda x: F.max_pool3d(x, 2, 2),
    }
    for name in MIXED:
        x = mixed(pools[name](x) if name in pools else x, name)
    return x.mean(dim=(2, 3, 4))


def test_coclr_features_equal_the_original_network(tmp_path: Path) -> None:
    state = make_state(coclr_layers())
    names = save(coclr_file(state), tmp_path / "CoCLR-k400-rgb-128-s3d.pth.tar")
    backbone = s3d(norm_eps=1e-5).double().eval()
    report = load_weights(backbone, tmp_path / "CoCLR-k400-rgb-128-s3d.pth.tar")
    assert (report.missing, report.prefix) == ([], "state_dict.encoder_q.0.")
    assert set(report.unused) == names - {f"{report.prefix}{name}" for name in state}
    video = torch.randn(1, 3, 8, 32, 32, dtype=torch.float64)
    double = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    with torch.no_grad():
        torch.testing.assert_close(backbone(video), run_coclr(double, video))


def test_coclr_needs_its_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "CoCLR-ucf101-rgb-128-s3d-ep182.tar"
    save(coclr_file(numbered(coclr_layers()), others=False), path)
    backbone = s3d()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    message = (
        f"`path` '{path}' is of CoCLR, whose batch norms add 1e-5 to the variance, which no file "
        "tells: build the backbone by `s3d(norm_eps=1e-5)`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(backbone, path)
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    split = SplitBatchNorm.convert_split_batchnorm(s3d(norm_eps=1e-5), num_splits=2)
    assert all("num_batches_tracked" in name for name in load_weights(split, path).missing)


def rename(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


def gate(state: State) -> State:
    return state | {"encoder_q.0.Mixed_3b.gating_b0.fc.weight": torch.zeros(64, 64)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            rename("Mixed_4e.", "Mixed_4x."),
            "40 tensors (stages.11.branch0.0.weight, stages.11.branch0.1.bias, "
            "stages.11.branch0.1.running_mean, ...) missing in the file; "
            "48 tensors (state_dict.encoder_q.0.Mixed_4x.branch0.0.bn.bias, "
            "state_dict.encoder_q.0.Mixed_4x.branch0.0.bn.num_batches_tracked, "
            "state_dict.encoder_q.0.Mixed_4x.branch0.0.bn.running_mean, ...) not in the backbone",
        ),
        (
            gate,
            "1 tensors (state_dict.encoder_q.0.Mixed_3b.gating_b0.fc.weight) not in the backbone",
        ),
    ],
)
def test_another_s3d(change: Callable[[State], State], problem: str, tmp_path: Path) -> None:
    content, path = coclr_file(numbered(coclr_layers()), others=False), tmp_path / "other.tar"
    content["state_dict"] = change(content["state_dict"])  # type: ignore[arg-type]
    torch.save(content, path)
    message = f"`path` '{path}' holds another network than `backbone` under "
    message += f"'state_dict.encoder_q.0.'; {problem}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(s3d(norm_eps=1e-5), path)


def test_a_renamed_block_of_any_module(network: nn.Module, tmp_path: Path) -> None:
    content, path = moco_file(1), tmp_path / "other.pth.tar"
    state = content["state_dict"]
    content["state_dict"] = rename("encoder_q.layer2.1.", "encoder_q.layer2.9.")(state)  # type: ignore[arg-type]
    torch.save(content, path)
    encoder = as_encoder(network, feature_dim=2048, strides=(1, 32), layout="BCHW")
    match = (
        r"15 tensors \(layer2\.1\.bn1\.bias, .*, \.\.\.\) missing in the file; 18 tensors "
        r"\(state_dict\.module\.encoder_q\.layer2\.9\.bn1\.bias, .*, \.\.\.\) not in the backbone$"
    )
    with pytest.raises(ValueError, match=match):
        load_weights(encoder, path)
