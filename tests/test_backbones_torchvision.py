"""The encoders that come from torchvision: its own networks are the oracle."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iivcl.backbones import (
    VideoEncoder,
    load_weights,
    mc3_18,
    mvit_v2_s,
    r2plus1d_18,
    r3d_18,
    s3d,
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
}
CLASSIFIERS = {"s3d": "classifier", "mvit_v2_s": "head", "swin3d_t": "head"}  # the others' is fc
OTHERS = ["s3d", "mvit_v2_s", "swin3d_t"]  # not residual networks


def make_oracle(name: str) -> nn.Module:
    return getattr(torchvision.models.video, name)()


@functools.cache
def their_state(name: str) -> Mapping[str, Tensor]:
    """Hold the weights of one network of torchvision; not to be written to."""
    return make_oracle(name).state_dict()


def classifier(name: str) -> str:
    return CLASSIFIERS.get(name, "fc")


def our_names(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's state dict as the docstrings say that ours is."""
    return {
        key.replace("features.", "stages.", 1) if key.startswith("features.") else key: value
        for key, value in state.items()
        if not key.startswith(classifier(name) + ".")
    }


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18", "mvit_v2_s", "swin3d_t"])
def test_features_equal_torchvision_bit_for_bit(name: str) -> None:
    oracle, backbone = make_oracle(name), BUILDERS[name]()
    backbone.load_state_dict(our_names(name, oracle.state_dict()))
    setattr(oracle, classifier(name), nn.Identity())
    video = torch.randn(2, 3, 8, 64, 32) if name in OTHERS else torch.randn(2, 3, 8, 16, 24)
    if name == "mvit_v2_s":  # it is told the size of the map that it cannot see
        oracle.pos_encoding.temporal_size, oracle.pos_encoding.spatial_size = 4, (16, 8)
    for training in (True, False):  # the second with the statistics that the first has gathered
        oracle.train(training)
        backbone.train(training)
        with torch.no_grad():
            torch.manual_seed(1)  # of the blocks that are left out at random
            expected = oracle(video)
            torch.manual_seed(1)
            got = backbone(video)
        assert got.shape == (2, backbone.feature_dim)
        assert torch.equal(got, expected)


def test_s3d_equals_torchvision() -> None:
    oracle, backbone = make_oracle("s3d"), s3d()
    backbone.load_state_dict(our_names("s3d", oracle.state_dict()))
    oracle.classifier = nn.Identity()
    for training in (True, False):
        oracle.train(training)
        backbone.train(training)
        with torch.no_grad():
            video = torch.randn(2, 3, 8, 64, 32)
            assert torch.equal(backbone.features(video), oracle.features(video))
    # torchvision's windows of 2x7x7 cells fit once into the map of the published clips.
    oracle.features = backbone.stages = nn.Sequential(nn.Conv3d(3, 1024, (8, 32, 32), (8, 32, 32)))
    with torch.no_grad():
        video = torch.randn(1, 3, 16, 224, 224)
        torch.testing.assert_close(backbone(video), oracle(video))


def test_mvit_map_holds_the_tokens_of_the_clip_in_order() -> None:
    # Without attention and convolutions across tokens, a token of the map depends on its own
    # patch alone: a change in one corner of the last frames shows in one cell.
    backbone = mvit_v2_s().eval()
    with torch.no_grad():
        for block in backbone.blocks:
            for p in block.attn.project.parameters():
                p.zero_()
        video = torch.randn(1, 3, 4, 128, 64)
        changed = video.clone()
        changed[:, :, 2:, 112:, 48:] += 1
        where = (backbone.features(video) != backbone.features(changed)).any(dim=1)[0]
    assert where.shape == (2, 4, 2)
    assert where.nonzero().tolist() == [[1, 3, 1]]


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("r3d_18", "KINETICS400_V1"),
        ("mc3_18", "DEFAULT"),
        ("r2plus1d_18", torchvision.models.video.R2Plus1D_18_Weights.KINETICS400_V1),
        ("s3d", "KINETICS400_V1"),
        ("mvit_v2_s", "DEFAULT"),
        ("swin3d_t", torchvision.models.video.Swin3D_T_Weights.KINETICS400_V1),
    ],
)
def test_weights_pass_through(
    name: str, spelling: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = their_state(name)
    url = torchvision.models.get_model_weights(name).KINETICS400_V1.url
    (tmp_path / "checkpoints").mkdir()  # where torchvision looks before it downloads
    torch.save(state, tmp_path / "checkpoints" / Path(url).name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert_same_state(BUILDERS[name](weights=spelling), our_names(name, state))


@pytest.mark.parametrize("name", BUILDERS)
def test_checkpoint_with_torchvisions_names(name: str, tmp_path: Path) -> None:
    state = their_state(name)
    training_script = name == "swin3d_t"
    torch.save({"model": state, "epoch": 3} if training_script else state, tmp_path / "model.pth")
    backbone = BUILDERS[name]()
    report = load_weights(backbone, tmp_path / "model.pth")
    assert report.missing == []
    assert report.prefix == ("model." if training_script else "")
    classifiers = [key for key in state if key.startswith(classifier(name) + ".")]
    assert report.unused == [report.prefix + key for key in classifiers]
    assert len(report.unused) == 2
    assert_same_state(backbone, our_names(name, state))


def test_checkpoint_of_another_torchvision_network(tmp_path: Path) -> None:
    torch.save(their_state("mc3_18"), tmp_path / "mc3.pth")
    with pytest.raises(ValueError, match=r"another network than `backbone`; .* of another shape$"):
        load_weights(r3d_18(), tmp_path / "mc3.pth")
    with pytest.raises(ValueError, match=r"another network than `backbone`; .* missing in the"):
        load_weights(slow_resnet(18), tmp_path / "mc3.pth")


@pytest.mark.parametrize("name", BUILDERS)
def test_multiply_adds_are_torchvisions(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    frames, pixels = (16, 224) if name in OTHERS else (16, 112)
    with torch.device("meta"):
        backbone, video = BUILDERS[name]().eval(), torch.empty(1, 3, frames, pixels, pixels)
        head = getattr(make_oracle(name), classifier(name))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(video)
    assert counter.get_total_flops() / 2e9 == pytest.approx(published["_ops"], rel=0.002)
    counts = [sum(p.numel() for p in module.parameters()) for module in (backbone, head)]
    assert sum(counts) == published["num_params"]


@pytest.mark.parametrize("name", OTHERS)
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    backbone = BUILDERS[name]()
    frames, pixels = backbone.strides
    video = torch.randn(2, 3, frames, pixels, 2 * pixels)
    before = copy.deepcopy(backbone.state_dict())
    gradients, statistics, held = [], [], []
    for checkpointing in (False, True):
        backbone.gradient_checkpointing = checkpointing
        backbone.load_state_dict(before)
        backbone.zero_grad()
        kept = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.numel() * x.element_size()
            return x

        torch.manual_seed(1)  # the blocks that are left out at random are the same in both runs
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            features = backbone(video)
        features.square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
        statistics.append({key: b.clone() for key, b in backbone.named_buffers()})
        held.append(kept)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(statistics[1], statistics[0])
    assert held[1] < held[0] / 4


@pytest.mark.parametrize(
    "name",
    ["s3d", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mvit_v2_s", "swin3d_t"))],
)
def test_compiles_as_one_graph(name: str) -> None:
    backbone = BUILDERS[name]().eval()
    if name == "mvit_v2_s":
        del backbone.blocks[5:14]  # ten that are alike
    frames, pixels = backbone.strides
    video = torch.randn(1, 3, frames, pixels, 2 * pixels)
    torch.compiler.reset()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(video), backbone(video))


def assert_same_state(backbone: nn.Module, expected: Mapping[str, Tensor]) -> None:
    assert backbone.state_dict().keys() == expected.keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key
