"""Batch norm over parts of the batch: separate batch norms on the parts are the reference."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from iivcl.backbones import SplitBatchNorm, VideoResNet
from iivcl.distributed import batch_shuffle, batch_unshuffle

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}


def randomise(norm: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 2, 3, 5)])
def test_equals_separate_batch_norms_on_the_parts(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    split = SplitBatchNorm(4, num_splits=3, momentum=momentum).double()
    randomise(split)
    separate = []
    for _ in range(3):
        norm = NORMS[len(shape)](4, momentum=momentum).double()
        norm.load_state_dict(split.state_dict())
        separate.append(norm)
    for _ in range(2):  # the cumulative average takes more than one step to tell apart
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(shape, dtype=torch.float64)
        split.zero_grad()
        y = split(x)
        (y * weights).sum().backward()
        got = [x.grad, split.weight.grad, split.bias.grad]

        z = x.detach().clone().requires_grad_()
        for norm in separate:
            norm.zero_grad()
        expected = torch.cat([norm(part) for norm, part in zip(separate, z.chunk(3), strict=True)])
        (expected * weights).sum().backward()
        torch.testing.assert_close(y, expected)
        summed = [sum(norm.get_parameter(n).grad for norm in separate) for n in ("weight", "bias")]
        torch.testing.assert_close(got, [z.grad, *summed])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        values = torch.stack([norm.get_buffer(name).double() for norm in separate])
        torch.testing.assert_close(split.get_buffer(name).double(), values.mean(0))


def test_keeps_the_memory_format_and_the_precision() -> None:
    x = torch.randn(4, 3, 2, 5, 5)
    split = SplitBatchNorm(3, num_splits=2)
    last = split(x.to(memory_format=torch.channels_last_3d))
    assert last.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(last, split(x))
    low = split(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), last, rtol=0.02, atol=0.02)
    assert split.running_mean.dtype == torch.float32


def test_eval_is_plain_batch_norm() -> None:
    split, plain = SplitBatchNorm(4, num_splits=3).eval(), nn.BatchNorm3d(4).eval()
    randomise(split)
    plain.load_state_dict(split.state_dict())
    x = torch.randn(5, 4, 2, 3, 3)  # no multiple of 3
    assert torch.equal(split(x), plain(x))


def test_without_running_statistics_or_weights() -> None:
    split = SplitBatchNorm(4, num_splits=2, affine=False, track_running_stats=False)
    plain = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    x = torch.randn(6, 4)
    torch.testing.assert_close(split(x), torch.cat([plain(x[:3]), plain(x[3:])]))
    assert list(split.state_dict()) == []


def make_network() -> VideoResNet:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4, eps=0.01), nn.ReLU())

    stages = [nn.Sequential(block()) for _ in range(4)]
    return VideoResNet(nn.Conv3d(3, 4, 1), stages, feature_dim=4, strides=(1, 1))


def test_converted_network_is_the_network_on_each_part() -> None:
    network = make_network()
    network.layer2.eval()
    network.layer1[0][1].weight.requires_grad_(False)
    before = copy.deepcopy(network)
    parameters = list(network.parameters())
    converted = SplitBatchNorm.convert_split_batchnorm(network, num_splits=2)
    assert converted is network
    assert all(p is q for p, q in zip(network.parameters(), parameters, strict=True))
    assert_same_state(network, before)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [SplitBatchNorm] * 4
    assert {(norm.eps, norm.num_splits) for norm in norms} == {(0.01, 2)}

    video = torch.randn(6, 3, 2, 4, 4)
    expected = torch.cat([copy.deepcopy(before)(part) for part in video.chunk(2)])
    torch.testing.assert_close(network(video), expected)


def test_a_norm_with_an_activation_is_refused_and_nothing_converted() -> None:
    class Active(nn.BatchNorm3d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    network = nn.Sequential(nn.BatchNorm3d(3), nn.Sequential(Active(3)))
    message = (
        "`module` must have batch norms of torch; '1.0' is a Active, which computes something of "
        "its own"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SplitBatchNorm.convert_split_batchnorm(network, num_splits=2)
    assert type(network[0]) is nn.BatchNorm3d
    of_several = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm2d(3), nn.BatchNorm1d(3))
    SplitBatchNorm.convert_split_batchnorm(of_several, num_splits=2)
    again = SplitBatchNorm.convert_split_batchnorm(of_several, num_splits=3)
    assert [norm.num_splits for norm in again] == [3, 3, 3]


def test_converting_a_norm_returns_the_split_one() -> None:
    norm = nn.BatchNorm1d(4)
    split = SplitBatchNorm.convert_split_batchnorm(norm, num_splits=2)
    assert isinstance(split, SplitBatchNorm)
    assert split.weight is norm.weight
    assert split.running_mean is norm.running_mean


def test_statistics_count_once_under_checkpointing() -> None:
    plain, saving = make_network(), make_network()
    saving.load_state_dict(plain.state_dict())
    for network in (plain, saving):
        SplitBatchNorm.convert_split_batchnorm(network, num_splits=2)
    saving.gradient_checkpointing = True
    for _ in range(2):
        video = torch.randn(4, 3, 2, 4, 4)
        plain(video).sum().backward()
        saving(video).sum().backward()
    assert_same_state(saving, plain)


def test_compiles_as_one_graph() -> None:
    plain, compiled = SplitBatchNorm(3, num_splits=2), SplitBatchNorm(3, num_splits=2)
    torch.compiler.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(4, 3, 2)
        torch.testing.assert_close(run(x), plain(x))
    assert_same_state(compiled, plain)


def test_shuffled_keys_are_normalised_in_other_company() -> None:
    split = SplitBatchNorm(2, num_splits=2)
    x = torch.randn(8, 2)
    rows, permutation = batch_shuffle(x)
    company = [set(part.tolist()) for part in permutation.chunk(2)]
    assert set(range(4)) not in company
    keys = batch_unshuffle(split(rows), permutation)
    expected = torch.empty_like(x)
    for part in company:
        members = sorted(part)
        expected[members] = nn.BatchNorm1d(2)(x[members])
    torch.testing.assert_close(keys, expected)
    assert not torch.allclose(keys, split(x), atol=0.01)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: SplitBatchNorm(4, num_splits=0), "`num_splits` must be at least 1; got 0"),
        (
            lambda: SplitBatchNorm(4, num_splits=3)(torch.zeros(7, 4)),
            "`input` must have a multiple of 3 rows (from `num_splits`); got 7",
        ),
        (
            lambda: SplitBatchNorm(4, num_splits=2)(torch.zeros(4)),
            "`input` must have at least 2 axes (B, C, ...); got 1",
        ),
    ],
)
def test_unfit_arguments(run, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run()


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    states: list[dict[str, Tensor]] = [dict(a.state_dict()), dict(b.state_dict())]
    torch.testing.assert_close(*states)
