"""Convolutions in half precision on a CPU, under every instruction set it has, against float32."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iivcl.backbones import (
    PaddedConv3d,
    WrongConvolution,
    check_convolutions,
    r2plus1d_18,
    slow_resnet,
)

# Instruction sets that oneDNN can be held to, and the flag of a CPU that has them.
INSTRUCTIONS = {
    "AVX512_CORE_AMX": "amx_bf16",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE": "avx512bw",
    "AVX2": "avx2",
}


def cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def errors_under(env: dict[str, str]) -> list[str]:
    script = Path(__file__).with_name("convolution_errors.py")
    # A process of its own: a wrong kernel may write beyond its memory.
    run = subprocess.run(
        [sys.executable, str(script)], env=os.environ | env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
def test_every_layer_and_network_agrees_with_float32() -> None:
    assert errors_under({}) == []


@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_layer_and_network_agrees_under_every_instruction_set(instructions: str) -> None:
    if INSTRUCTIONS[instructions] not in cpu_flags():
        pytest.skip(f"this CPU has no {INSTRUCTIONS[instructions]}")
    assert errors_under({"ONEDNN_MAX_CPU_ISA": instructions}) == []


@pytest.mark.parametrize("padding", [(1, 1, 1), "same", (2, 0, 1)])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 1, 5, 1), (2, 3, 2, 5, 5), (2, 3, 9, 8, 8)])
def test_short_clips_keep_value_and_gradients(
    shape: tuple[int, ...], autocast: bool, padding: tuple[int, ...] | str
) -> None:
    stride = 1 if padding == "same" else 2
    plain = nn.Conv3d(3, 4, 3, stride, padding)
    padded = PaddedConv3d.convert_conv3d(copy.deepcopy(plain))
    video = torch.randn(shape).bfloat16().float().requires_grad_()
    with torch.no_grad():
        for conv in (plain, padded):
            conv.weight.copy_(conv.weight.bfloat16())
            conv.bias.copy_(conv.bias.bfloat16())
    expected = plain(video)
    inputs = video if autocast else video.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = padded(inputs) if autocast else padded.bfloat16()(inputs)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)
    slope = torch.randn_like(expected).bfloat16().float()
    wanted = torch.autograd.grad(expected, (video, plain.weight, plain.bias), slope)
    found = torch.autograd.grad(got, (video, padded.weight, padded.bias), slope.bfloat16())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.03, atol=0.03 * float(b.abs().max()))


def test_float32_runs_the_plain_convolution() -> None:
    plain = nn.Conv3d(3, 4, 3, padding=1)
    video = torch.randn(1, 3, 2, 6, 6)
    assert torch.equal(PaddedConv3d.convert_conv3d(copy.deepcopy(plain))(video), plain(video))


def test_conversion_keeps_names_tensors_hooks_and_foreign_arithmetic() -> None:
    class Doubled(nn.Conv3d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return 2 * super()._conv_forward(input, weight, bias)

    class Causal(nn.Conv3d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(input, (0, 0, 0, 0, 2, 0)))

    foreign = nn.Sequential(Doubled(4, 4, 1), nn.Conv2d(4, 4, 1), Causal(4, 4, (3, 1, 1)))
    model = nn.Sequential(nn.Conv3d(3, 4, 3), foreign)
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    names, weight, types = (
        list(model.state_dict()),
        model[0].weight,
        [type(conv) for conv in foreign],
    )
    assert PaddedConv3d.convert_conv3d(model) is model
    assert list(model.state_dict()) == names
    assert type(model[0]) is PaddedConv3d
    assert model[0].weight is weight
    assert [type(conv) for conv in foreign] == types
    model[0](torch.randn(1, 3, 3, 4, 4))
    assert calls == [1]


def test_conversion_leaves_weights_that_are_computed() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv3d(2, 3, 1))
    video = torch.randn(1, 2, 2, 4, 4)
    before = conv(video)
    assert torch.equal(PaddedConv3d.convert_conv3d(nn.Sequential(conv))(video), before)


def test_encoders_have_no_plain_temporal_convolution() -> None:
    for network in (r2plus1d_18(), slow_resnet(18)):
        kinds = {type(module) for module in network.modules() if isinstance(module, nn.Conv3d)}
        assert kinds == {PaddedConv3d}


def test_compiles_as_one_graph_under_autocast() -> None:
    conv = PaddedConv3d(3, 4, 3, padding=1)
    video = torch.randn(1, 3, 2, 6, 6)
    torch.compiler.reset()
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(video), conv(video))


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad + 1


class WrongInHalf(nn.Conv3d):
    """What a broken kernel does: right in float32, another gradient of the weight in bfloat16."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dtype == torch.bfloat16:
            weight = WrongGradient.apply(weight)
        return super()._conv_forward(input, weight, bias)


def test_check_finds_a_wrong_convolution_by_name_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), WrongInHalf(4, 4, 1)).bfloat16()
    before = copy.deepcopy(model.state_dict())
    found = check_convolutions(model, torch.randn(2, 3, 4, 6, 6))
    assert [error.name for error in found] == ["2"]
    (error,) = found
    assert isinstance(error, WrongConvolution)
    assert error.input_shape == (2, 4, 2, 4, 4)
    assert error.output < 0.01
    assert error.input_gradient < 0.01
    assert error.weight_gradient > 0.05
    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
