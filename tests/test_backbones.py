"""All encoders: sizes, maps, memory formats and precision; the Slow networks in detail."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iivcl import backbones
from iivcl.backbones import (
    VideoEncoder,
    VideoResNet,
    mc3_18,
    mvit_v2_s,
    r2plus1d_18,
    r3d_18,
    s3d,
    slow_r50,
    slow_resnet,
    swin3d_t,
)

BUILDERS: dict[str, Callable[..., VideoEncoder]] = {
    "r3d_18": r3d_18,
    "mc3_18": mc3_18,
    "r2plus1d_18": r2plus1d_18,
    "s3d": s3d,
    "mvit_v2_s": mvit_v2_s,
    "swin3d_t": swin3d_t,
    "slow_r18": lambda **options: slow_resnet(18, **options),
    "slow_r50": slow_r50,
}


@pytest.fixture(scope="module", params=sorted(BUILDERS.keys() - {"slow_r50"}))
def encoder(request: pytest.FixtureRequest) -> VideoEncoder:
    """Give one encoder after the other to all tests that leave it as it is."""
    return BUILDERS[request.param]().eval()


def on_meta(builder: Callable[[], VideoEncoder]) -> VideoEncoder:
    """Build what only shapes are asked of."""
    with torch.device("meta"):
        return builder()


def test_slow_r18_without_temporal_taps_is_the_image_network_on_every_frame() -> None:
    oracle = torchvision.models.resnet18()
    randomise_statistics(oracle)
    backbone = slow_resnet(18)
    copy_as_centre_taps(oracle, backbone)
    oracle.fc = nn.Identity()
    oracle.double().eval()  # float64, for the maps of a random deep network grow large
    backbone.double().eval()
    video = torch.randn(1, 3, 2, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        per_frame = torch.stack([oracle(video[:, :, t]) for t in range(2)], dim=2)  # (B, D, T)
        maps = backbone.features(video)
        torch.testing.assert_close(maps.mean(dim=(3, 4)), per_frame)
        torch.testing.assert_close(backbone(video), per_frame.mean(dim=2))


def test_slow_r18_sees_one_more_frame_each_side_per_block_of_res4_and_res5() -> None:
    reach = 4
    T = 2 * reach + 5
    backbone = slow_resnet(18).eval()
    with torch.no_grad():  # only positive weights: no influence cancels, no ReLU is shut
        for p in backbone.parameters():
            p.abs_()
    video = torch.rand(1, 3, T, 32, 32, requires_grad=True)
    middle = reach + 2
    backbone.features(video)[:, :, middle].sum().backward()
    influence = video.grad.abs().sum(dim=(0, 1, 3, 4))  # (T,)
    seen = (influence > 0).nonzero().flatten().tolist()
    assert seen == list(range(middle - reach, middle + reach + 1))


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_dilation_keeps_the_resolution_of_res4_and_the_parameters(depth: int) -> None:
    backbone = on_meta(lambda: slow_resnet(depth))
    dilated = on_meta(lambda: slow_resnet(depth, res5_dilation=2))
    dilated.load_state_dict(backbone.state_dict(), assign=True)
    video = torch.empty(1, 3, 4, 96, 64, device="meta")
    assert dilated.features(video).shape == (1, dilated.feature_dim, 4, 6, 4)
    strides = [m.stride[1] for m in dilated.layer4.modules() if isinstance(m, nn.Conv3d)]
    assert set(strides) == {1}
    for module in dilated.layer4.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1] == 3:
            assert module.dilation == (1, 2, 2)
            assert module.padding[1:] == (2, 2)


def test_dilated_res5_is_the_stride_one_res5_on_interleaved_grids() -> None:
    # A 3x3 kernel of dilation 2 sees one of four grids of every second pixel; on each of them it
    # is the plain kernel. Without borders and shortcuts' strides both give the same maps.
    plain, dilated = slow_resnet(18).eval(), slow_resnet(18, res5_dilation=2).eval()
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 256, 2, 8, 8)
    block, dilated_block = plain.layer4[1], dilated.layer4[1]
    y = torch.randn(1, 512, 2, 8, 8)
    with torch.no_grad():
        whole = dilated_block(y)
        for top in (0, 1):
            for left in (0, 1):
                part = block(y[..., top::2, left::2])
                torch.testing.assert_close(whole[..., top::2, left::2], part)
        assert dilated.layer4[0](x).shape == (1, 512, 2, 8, 8)


STAGE_SHAPES = {  # of 8 frames of 224x224, from table 1 of arXiv 1812.03982
    "stem": (64, 8, 56, 56),
    "layer1": (256, 8, 56, 56),
    "layer2": (512, 8, 28, 28),
    "layer3": (1024, 8, 14, 14),
    "layer4": (2048, 8, 7, 7),
}


def test_slow_r50_stage_shapes() -> None:
    backbone, x = on_meta(slow_r50), torch.empty(1, 3, 8, 224, 224, device="meta")
    for name, shape in STAGE_SHAPES.items():
        x = backbone.get_submodule(name)(x)
        assert x.shape[1:] == shape, name


def test_slow_r50_has_the_published_number_of_parameters() -> None:
    """Count every kernel of the architecture table by hand."""

    def conv_norm(c_in: int, c_out: int, taps: int) -> int:
        return c_in * c_out * taps + 2 * c_out

    count = conv_norm(3, 64, 7 * 7)
    width = 64
    for inner, blocks, temporal in ((64, 3, 1), (128, 4, 1), (256, 6, 3), (512, 3, 3)):
        for block in range(blocks):
            if block == 0:
                count += conv_norm(width, 4 * inner, 1)
            count += conv_norm(width, inner, temporal)
            count += conv_norm(inner, inner, 3 * 3)
            count += conv_norm(inner, 4 * inner, 1)
            width = 4 * inner
    backbone = on_meta(slow_r50)
    assert sum(p.numel() for p in backbone.parameters()) == count == 31_634_496
    # The model zoo gives 32.45 M with the classifier of Kinetics-400, and 54.52 G at 256 pixels.
    classifier = 2048 * 400
    assert round((count + classifier + 400) / 1e6, 2) == 32.45
    assert round((multiply_adds(backbone, 8, 256) + classifier) / 1e9, 2) == 54.52


def test_table_in_the_documentation() -> None:
    root = Path(__file__).parent.parent
    name = "benchmarks/results/backbones.cpu.1-thread"
    assert f'--8<-- "{name}.md:table"' in (root / "docs/reference/backbones.md").read_text()
    rows = json.loads((root / f"{name}.json").read_text())["results"]
    builders = {
        n
        for n in backbones.__all__
        if n.islower() and not n.startswith(("load", "check", "as_", "inflate"))
    }
    assert {row["encoder"].partition("(")[0] for row in rows} == builders
    for row in rows:
        backbone_name, _, depth = row["encoder"].rstrip(")").partition("(")
        builder = functools.partial(
            getattr(backbones, backbone_name), *([int(depth)] if depth else [])
        )
        backbone = on_meta(builder)
        assert (backbone.feature_dim, list(backbone.strides)) == (row["features"], row["strides"])
        assert sum(p.numel() for p in backbone.parameters()) == row["parameters"]
        counted = multiply_adds(backbone, row["frames"], row["pixels"])
        assert counted == pytest.approx(row["multiply_adds"], rel=2e-3)


def multiply_adds(backbone: VideoEncoder, frames: int, pixels: int) -> int:
    video = torch.empty(1, 3, frames, pixels, pixels, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.eval()(video)
    return counter.get_total_flops() // 2


def test_output_is_the_mean_of_the_feature_map(encoder: VideoEncoder) -> None:
    frames, pixels = encoder.strides
    with torch.no_grad():
        video = torch.randn(2, 3, frames, pixels, 2 * pixels)
        maps, output = encoder.features(video), encoder(video)
    assert maps.shape == (2, encoder.feature_dim, 1, 1, 2)
    if type(encoder).__name__ != "_MViT":  # which has a token for the whole clip
        torch.testing.assert_close(output, maps.mean(dim=(2, 3, 4)))


def make_tiny(*, gradient_checkpointing: bool) -> VideoResNet:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())

    return VideoResNet(
        nn.Conv3d(3, 4, 1),
        [nn.Sequential(block(), block()), *(nn.Sequential(block()) for _ in range(3))],
        feature_dim=4,
        strides=(1, 1),
        gradient_checkpointing=gradient_checkpointing,
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(compiled: bool) -> None:
    plain = make_tiny(gradient_checkpointing=False)
    saving = make_tiny(gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    if not compiled:  # a cumulative average, which torch itself cannot compile
        saving.layer1[1][1].momentum = plain.layer1[1][1].momentum = None
    video = torch.randn(2, 3, 3, 6, 6)
    weights = torch.randn(2, plain.feature_dim)
    torch.compiler.reset()
    run = torch.compile(saving, backend="aot_eager", fullgraph=True) if compiled else saving
    for backbone in (plain, run, plain, run):
        (backbone(video) * weights).sum().backward()
    if not compiled or torch.__version__ >= "2.5":  # 2.4 counts twice: the docstring says so
        for (key, value), expected in zip(
            saving.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(value, expected, msg=key)
    for (key, p), q in zip(saving.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)


def test_gradient_checkpointing_keeps_less() -> None:
    def saved_bytes(backbone: VideoResNet) -> int:
        total = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            backbone(torch.randn(1, 3, 4, 64, 64))
        return total

    saving = saved_bytes(slow_resnet(18, gradient_checkpointing=True))
    assert saving < 0.5 * saved_bytes(slow_resnet(18))


def test_compiles_as_one_graph() -> None:
    backbone = slow_resnet(18)
    video = torch.randn(2, 3, 2, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    backbone.eval()
    torch.testing.assert_close(compiled(video), backbone(video))


def test_channels_last_and_bfloat16_give_the_same_features(encoder: VideoEncoder) -> None:
    frames, pixels = encoder.strides
    video = torch.randn(2, 3, frames, pixels, 2 * pixels)
    with torch.no_grad():
        expected = encoder(video)
        encoder.to(memory_format=torch.channels_last_3d)
        video = video.to(memory_format=torch.channels_last_3d)
        got = encoder(video)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = encoder(video)
        encoder.to(memory_format=torch.contiguous_format)
    scale = expected.abs().max()
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rounded / scale, expected / scale, rtol=0, atol=0.05)
    assert not torch.equal(rounded, got)


def test_flow_has_two_channels() -> None:
    backbone = slow_resnet(18, in_channels=2)
    assert backbone(torch.randn(2, 2, 4, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "r3d_18",
            (2, 1, 8, 32, 32),
            "`video` must have shape (B, C, T, H, W) with C=3 (from `in_channels`); "
            "got (2, 1, 8, 32, 32). Expand gray clips to 3 channels with "
            "`video.expand(-1, 3, -1, -1, -1)`",
        ),
        (
            "slow_r18",
            (3, 8, 32, 32),
            "`video` must have shape (B, C, T, H, W) with C=3 (from `in_channels`); "
            "got (3, 8, 32, 32). For a single clip, add the axis B with `video[None]`",
        ),
        (
            "r3d_18",
            (2, 3, 4, 112, 112),
            "`video` must have at least 8 frames of 16x16 pixels for the strides of this "
            "backbone; got 4 frames of 112x112",
        ),
        (
            "s3d",
            (2, 3, 7, 224, 224),
            "`video` must have at least 8 frames of 32x32 pixels for the strides of this "
            "backbone; got 7 frames of 224x224",
        ),
        (
            "mc3_18",
            (2, 3, 1, 16, 15),
            "`video` must have at least 1 frames of 16x16 pixels for the strides of this "
            "backbone; got 1 frames of 16x15",
        ),
        (
            "slow_r18",
            (2, 3, 1, 31, 32),
            "`video` must have at least 1 frames of 32x32 pixels for the strides of this "
            "backbone; got 1 frames of 31x32",
        ),
    ],
)
def test_unfit_video(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        on_meta(BUILDERS[name])(torch.zeros(shape, device="meta"))


def test_smallest_video_has_one_cell(encoder: VideoEncoder) -> None:
    frames, pixels = encoder.strides
    with torch.no_grad():
        maps = encoder.features(torch.zeros(1, 3, frames, pixels, pixels))
    assert maps.shape == (1, encoder.feature_dim, 1, 1, 1)


def test_uint8_video() -> None:
    message = (
        "`video` must be a floating-point tensor; got torch.uint8. Convert it with `video.float()`"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        on_meta(r3d_18)(torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8, device="meta"))


def test_unknown_depth_and_dilation() -> None:
    with pytest.raises(ValueError, match=r"^`depth` must be one of \(18, 50, 101\); got 34$"):
        slow_resnet(34)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^`res5_dilation` must be one of \(1, 2\); got 4$"):
        slow_resnet(18, res5_dilation=4)  # type: ignore[arg-type]


def test_stages_must_be_four() -> None:
    with pytest.raises(ValueError, match=r"^`stages` must be 4 sequences of blocks; got 1$"):
        VideoResNet(nn.Identity(), [nn.Sequential()], feature_dim=3, strides=(1, 1))


def randomise_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)


def copy_as_centre_taps(oracle: nn.Module, backbone: VideoResNet) -> None:
    """Copy a network of images into one of videos whose other temporal taps are 0."""
    pairs = [(oracle.conv1, backbone.stem.conv), (oracle.bn1, backbone.stem.norm)]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for image_block, block in zip(
            getattr(oracle, stage), getattr(backbone, stage), strict=True
        ):
            for letter, number in zip("abc", "123", strict=True):
                if hasattr(image_block, f"conv{number}"):
                    layer = getattr(block.branch, letter)
                    pairs.append((getattr(image_block, f"conv{number}"), layer.conv))
                    pairs.append((getattr(image_block, f"bn{number}"), layer.norm))
            if image_block.downsample is not None:
                pairs.append((image_block.downsample[0], block.shortcut.conv))
                pairs.append((image_block.downsample[1], block.shortcut.norm))
    assert len(pairs) == sum(isinstance(m, nn.Conv3d | nn.BatchNorm3d) for m in backbone.modules())
    with torch.no_grad():
        for image_layer, layer in pairs:
            if isinstance(layer, nn.Conv3d):
                layer.weight.zero_()
                layer.weight[:, :, layer.kernel_size[0] // 2] = image_layer.weight
            else:
                layer.load_state_dict(image_layer.state_dict())
