"""Published weights: state dicts with the original names and shapes, and a forward pass on them.

Names and shapes are written down here from the published architecture, and the network is run
straight on them, so that nothing of the implementation stands in for the original.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published import (
    BLOCKS,
    State,
    empty,
    make_state,
    numbered,
    pyslowfast_layers,
    pytorchvideo_layers,
    under,
)
from torch import Tensor
from torch.nn import functional as F

from iivcl.backbones import VideoResNet, load_weights, slow_r50, slow_resnet


@pytest.fixture(scope="module")
def original() -> State:
    """Hold the tensors of one Slow R50 under PySlowFast's names; not to be written to."""
    return numbered(pyslowfast_layers())


def run_pyslowfast(state: State, video: Tensor) -> Tensor:
    """Run Slow R50 in eval mode straight on the original names."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = state[f"{conv}.weight"]
        padding = [size // 2 for size in kernel.shape[2:]]
        x = F.conv3d(x, kernel, stride=(1, stride, stride), padding=padding)
        parts = [state[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    x = conv_norm(video, "s1.pathway0_stem.conv", "s1.pathway0_stem.bn", stride=2).relu()
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, blocks in enumerate(BLOCKS[50], start=2):
        for i in range(blocks):
            block = f"s{stage}.pathway0_res{i}"
            stride = 2 if i == 0 and stage > 2 else 1
            skip = x
            if i == 0:
                skip = conv_norm(x, f"{block}.branch1", f"{block}.branch1_bn", stride)
            x = conv_norm(x, f"{block}.branch2.a", f"{block}.branch2.a_bn").relu()
            x = conv_norm(x, f"{block}.branch2.b", f"{block}.branch2.b_bn", stride).relu()
            x = (skip + conv_norm(x, f"{block}.branch2.c", f"{block}.branch2.c_bn")).relu()
    return x.mean(dim=(2, 3, 4))


def in_double(state: State) -> State:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def test_features_equal_the_original_network(tmp_path: Path) -> None:
    state = make_state(pyslowfast_layers())
    path = tmp_path / "SLOW_8x8_R50.pyth"
    torch.save(
        {
            "epoch": 195,
            "model_state": {
                **state,
                "head.projection.weight": torch.randn(400, 2048),
                "head.projection.bias": torch.randn(400),
            },
            "optimizer_state": {"state": {0: {"momentum_buffer": None}}, "param_groups": []},
            "cfg": "MODEL:\n  ARCH: slow\n",
        },
        path,
    )
    backbone = empty(slow_r50)
    report = load_weights(backbone, path)
    head = ["model_state.head.projection.weight", "model_state.head.projection.bias"]
    assert report == ([], head, "model_state.")
    assert len(backbone.state_dict()) == len(state)

    video = torch.randn(1, 3, 2, 32, 32, dtype=torch.float64)
    backbone.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(video), run_pyslowfast(in_double(state), video))


def test_pytorchvideo_names_are_the_same_network(original: State, tmp_path: Path) -> None:
    # The same tensors in the same order.
    state = dict(zip(numbered(pytorchvideo_layers()), original.values(), strict=True))
    state["blocks.5.proj.weight"] = torch.randn(400, 2048)
    torch.save({"model_state": state}, tmp_path / "ptv.pyth")
    torch.save(original, tmp_path / "bare.pyth")  # a state dict alone is read as well
    one, two = empty(slow_r50), empty(slow_r50)
    assert load_weights(one, tmp_path / "ptv.pyth").unused == ["model_state.blocks.5.proj.weight"]
    assert load_weights(two, tmp_path / "bare.pyth").unused == []
    for (name, value), other in zip(
        one.state_dict().items(), two.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_safetensors_in_and_out(original: State, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"head.projection.weight": torch.zeros(400, 2048)}
    state |= {name: value.contiguous() for name, value in original.items()}
    save_file(state, tmp_path / "slow.safetensors")
    backbone = empty(slow_r50).to(memory_format=torch.channels_last_3d)
    report = load_weights(backbone, tmp_path / "slow.safetensors")
    assert report == ([], ["head.projection.weight"], "")
    ours = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    save_file(ours, tmp_path / "ours.safetensors")
    torch.save(original, tmp_path / "slow.pyth")
    one, two = empty(slow_r50), empty(slow_r50)
    assert load_weights(one, tmp_path / "ours.safetensors") == ([], [], "")
    load_weights(two, tmp_path / "slow.pyth")
    torch.testing.assert_close(dict(one.state_dict()), dict(two.state_dict()), rtol=0, atol=0)


def test_safetensors_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "slow.safetensors"
    message = (
        f"`path` '{path}' is read by the package safetensors, which is not installed: "
        "pip install 'iivcl[safetensors]'"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        load_weights(make_small(), path)


def test_deeper_network_goes_into_its_own_depth(tmp_path: Path) -> None:
    torch.save(under("module.", numbered(pyslowfast_layers(101))), tmp_path / "r101.pyth")
    report = load_weights(empty(lambda: slow_resnet(101)), tmp_path / "r101.pyth")
    assert report == ([], [], "module.")


def test_counters_of_batches_may_be_missing(original: State, tmp_path: Path) -> None:
    state = original
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save({"model_state": old}, tmp_path / "old.pyth")
    report = load_weights(empty(slow_r50), tmp_path / "old.pyth")
    assert len(report.missing) == len(state) - len(old)
    assert {name.rsplit(".", 1)[1] for name in report.missing} == {"num_batches_tracked"}


def drop_a_kernel(state: State) -> None:
    del state["s3.pathway0_res1.branch2.b.weight"]


def add_a_fast_pathway(state: State) -> None:
    state["s1.pathway1_stem.conv.weight"] = torch.zeros(8, 3, 5, 7, 7)
    state["s1_fuse.conv_f2s.weight"] = torch.zeros(16, 8, 7, 1, 1)


def widen_the_stem(state: State) -> None:
    state["s1.pathway0_stem.conv.weight"] = torch.zeros(64, 3, 5, 7, 7)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (drop_a_kernel, "1 tensors (layer2.1.branch.b.conv.weight) missing in the file"),
        (
            add_a_fast_pathway,
            "2 tensors (model_state.s1.pathway1_stem.conv.weight, "
            "model_state.s1_fuse.conv_f2s.weight) not in the backbone",
        ),
        (
            widen_the_stem,
            "1 tensors (stem.conv.weight (64, 3, 5, 7, 7) instead of (64, 3, 1, 7, 7)) "
            "of another shape",
        ),
    ],
)
def test_other_network_changes_nothing(
    change: Callable[[State], None], problem: str, original: State, tmp_path: Path
) -> None:
    state = dict(original)
    change(state)
    path = tmp_path / "other.pyth"
    torch.save({"model_state": state}, path)
    backbone = empty(slow_r50)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    message = f"`path` '{path}' holds another network than `backbone` under "
    message += f"'model_state.'; {problem}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(backbone, path)
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_other_depth(tmp_path: Path) -> None:
    torch.save(numbered(pyslowfast_layers(101)), tmp_path / "r101.pyth")
    message = (
        r"306 tensors \(s4\.pathway0_res10\.branch2\.a\.weight, .*, \.\.\.\) not in the backbone$"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(empty(slow_r50), tmp_path / "r101.pyth")


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (open, (self.path, "w"))  # type: ignore[attr-defined]


def test_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    bomb = RunsCode()
    bomb.path = str(tmp_path / "was-run")  # type: ignore[attr-defined]
    torch.save({"model_state": bomb}, tmp_path / "bomb.pyth")
    with pytest.raises(ValueError, match="is not a file of tensors and plain values"):
        load_weights(make_small(), tmp_path / "bomb.pyth")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model_state": {"epoch": 3}}, {0: torch.zeros(1)}])
def test_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    path = tmp_path / "list.pyth"
    torch.save(content, path)
    message = f"`path` '{path}' must hold a state dict, by itself or under a key"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(make_small(), path)


@pytest.fixture(scope="module")
def small() -> State:
    return dict(make_small().state_dict())


HEAD = {"weight": torch.zeros(8, 512)}


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (lambda s: under("_orig_mod.", s), "_orig_mod."),
        (lambda s: under("module._orig_mod.", s), "module._orig_mod."),
        (lambda s: under("module.0.", s) | under("module.1.", HEAD), "module.0."),
        (lambda s: under("0._orig_mod.", s) | under("1.", HEAD), "0._orig_mod."),
        (lambda s: under("encoder_q.", s) | under("encoder_k.", s), "encoder_q."),
        (lambda s: under("encoder.", s) | under("key_encoder.", s), "encoder."),
        (lambda s: {"state_dict": under("net.", s), "epoch": 3}, "state_dict.net."),
        (lambda s: {"model": s, "model_ema": s, "optimizer": {"state": {0: s}}}, "model."),
        (lambda s: {"a": {"weights": under("0.", s)}, "queue": HEAD}, "a.weights.0."),
        (lambda s: {"teacher": s, "head": HEAD}, "teacher."),
        (
            lambda s: {name.replace("layer1.", "layer1._orig_mod."): v for name, v in s.items()},
            "",
        ),
    ],
)
def test_the_encoder_is_found_wherever_it_is(
    content: Callable[[State], object], prefix: str, small: State, tmp_path: Path
) -> None:
    torch.save(content(small), tmp_path / "some.pth")
    backbone = slow_resnet(18)
    report = load_weights(backbone, tmp_path / "some.pth")
    assert (report.missing, report.prefix) == ([], prefix)
    assert not any(name.startswith(f"{prefix}stem.") for name in report.unused)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, small[name]), name


def test_several_encoders_that_fit(small: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in small.items()}
    path = tmp_path / "two.pth"
    torch.save({"rgb": small, "flow": other}, path)
    message = (
        f"`path` '{path}' holds several encoders that fit; choose one with `prefix`, of "
        "['rgb.', 'flow.']"
    )
    backbone = slow_resnet(18)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(backbone, path)
    report = load_weights(backbone, path, prefix="flow.")
    assert set(report.unused) == {f"rgb.{name}" for name in small}
    assert torch.equal(backbone.state_dict()["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.parametrize("prefix", ["encoder_q", "encoder", "rgb.", "encoder_q.layer1."])
def test_a_prefix_of_nothing_names_the_right_one(prefix: str, small: State, tmp_path: Path) -> None:
    path = tmp_path / "moco.pth"
    torch.save(under("encoder_q.", small) | under("encoder_k.", small), path)
    message = (
        f"`prefix` {prefix!r} stands before no name of an encoder in '{path}'; 'encoder_q.' does"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(slow_resnet(18), path, prefix=prefix)


def test_weights_are_those_of_a_file(small: State) -> None:
    with pytest.raises(TypeError, match=r"^`path` must be that of a file; got dict$"):
        load_weights(slow_resnet(18), small)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_names_its_path(form: str, tmp_path: Path) -> None:
    """Cut anywhere or with a byte changed, what is left is refused in our words."""
    from safetensors.torch import save_file

    state = {f"layer1.{i}.weight": torch.randn(6, 6) for i in range(4)}
    whole = tmp_path / ("whole.safetensors" if form == "safetensors" else "whole.pth")
    if form == "safetensors":
        save_file(state, whole)
    else:
        torch.save({"model": state}, whole, _use_new_zipfile_serialization=form == "zip")
    data, backbone = whole.read_bytes(), make_small()
    path = whole.with_stem("damaged")
    for place in range(0, len(data), 41):
        changed = bytes([data[place] ^ 255])
        for damaged in (data[:place], data[:place] + changed + data[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(f"`path` '{path}' ")):
                load_weights(backbone, path)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_weights(make_small(), tmp_path / "none.pth")


def make_small() -> VideoResNet:
    return slow_resnet(18)
