"""The momentum encoder: its average, its schedule, and the wrappers it looks through."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks_momentum as shards
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from iivcl import _engine
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_
from iivcl.testing import run_on_ranks


def make_encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def wrap_ddp(module: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(module)


def wrap_compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def compile_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


WRAPPERS = {
    "ddp": wrap_ddp,
    "compiled": wrap_compiled,
    "ddp of compiled": lambda module: wrap_ddp(wrap_compiled(module)),
    "compiled ddp": lambda module: wrap_compiled(wrap_ddp(module)),
    "data parallel": nn.DataParallel,
    "compiled in place": compile_in_place,
    "compiled inside": lambda module: nn.Sequential(wrap_compiled(module[0]), *module[1:]),
}


def test_copy_is_equal_separate_and_without_gradient() -> None:
    source = make_encoder()
    target = momentum_copy(source)
    for (name, t), (source_name, s) in zip(
        target.state_dict().items(), source.state_dict().items(), strict=True
    ):
        assert name == source_name
        assert torch.equal(t, s)
        assert t.data_ptr() != s.data_ptr()
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in source.parameters())


def test_copy_leaves_the_mode_of_every_submodule() -> None:
    source = make_encoder()
    source[1].eval()
    assert [m.training for m in momentum_copy(source).modules()] == [
        m.training for m in source.modules()
    ]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_modules_are_looked_through(wrap) -> None:
    plain = make_encoder()
    target = momentum_copy(plain)
    expected = copy.deepcopy(target)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1)
    momentum_update_(expected, plain, 0.9)
    momentum_update_(target, wrap(plain), 0.9)
    assert_same_state(target, expected)

    again = momentum_copy(wrap(plain))
    if wrap is not WRAPPERS["compiled inside"]:
        assert type(again) is nn.Sequential
    momentum_update_(again, plain, 0.0)
    assert_same_parameters(again, plain)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.99, 1.0])
def test_update_equals_a_loop_in_float64(momentum: float) -> None:
    target, source = momentum_copy(make_encoder()), make_encoder()
    before = {name: p.double() for name, p in target.named_parameters()}
    source_before = copy.deepcopy(source.state_dict())
    momentum_update_(target, source, momentum)
    for name, p in target.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * source.get_parameter(name).double()
        torch.testing.assert_close(p.double(), expected, rtol=1e-6, atol=1e-7)
    for name, value in source.state_dict().items():
        assert torch.equal(value, source_before[name])


def test_update_stays_at_a_fixed_point_and_converges() -> None:
    source = make_encoder()
    target = momentum_copy(source)
    momentum_update_(target, source, 0.5)
    assert_same_parameters(target, source)  # an average of equals is the same, bit for bit

    other = momentum_copy(make_encoder())
    for _ in range(60):
        momentum_update_(other, source, 0.5)
    assert_same_parameters(other, source, rtol=1e-5, atol=1e-6)


class Calls(TorchDispatchMode):
    """Lists the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("buffers", "operations"),
    [
        ("keep", ["aten::_foreach_lerp_.Scalar"]),
        ("copy", ["aten::_foreach_lerp_.Scalar", "aten::_foreach_copy_"]),
        ("average", ["aten::_foreach_lerp_.Scalar", "aten::_foreach_copy_"]),
    ],
)
def test_update_is_at_most_two_fused_calls(buffers: str, operations: list[str]) -> None:
    target, source = momentum_copy(make_encoder()), make_encoder()
    with Calls() as calls:
        momentum_update_(target, source, 0.9, buffers=buffers)  # type: ignore[arg-type]
    assert calls.names == operations
    momentum = torch.tensor(0.9)
    with Calls() as calls:  # one more: 1 - momentum
        momentum_update_(target, source, momentum, buffers=buffers)  # type: ignore[arg-type]
    assert len(calls.names) == len(operations) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9990234375, 1.0])  # as good in either dtype
def test_momentum_in_a_tensor_is_the_same_as_in_a_float(
    momentum: float, dtype: torch.dtype
) -> None:
    one, source = momentum_copy(make_encoder()), make_encoder()
    source(torch.randn(16, 4))
    source.append(nn.Linear(2, 2).to(torch.bfloat16))
    one.append(momentum_copy(source[-1]).float())
    two = copy.deepcopy(one)
    momentum_update_(one, source, momentum, buffers="average")
    momentum_update_(two, source, torch.tensor(momentum, dtype=dtype), buffers="average")
    assert_same_state(two, one)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.999, 1.0])
def test_momentum_in_a_tensor_on_an_accelerator(
    momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, source = momentum_copy(make_encoder()), make_encoder()
    start, two = copy.deepcopy(one), copy.deepcopy(one)
    momentum_update_(one, source, momentum)
    monkeypatch.setattr(_engine, "on_cpu", lambda tensor: False)
    momentum_update_(two, source, torch.tensor(momentum))
    for a, e in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, e, rtol=3e-7, atol=3e-7)
    if momentum == 1:
        assert_same_state(two, start)
    same = momentum_copy(source)
    momentum_update_(same, source, torch.tensor(momentum))
    for a, e in zip(same.parameters(), source.parameters(), strict=True):
        assert torch.equal(a, e)


def test_momentum_tensor_is_read_at_every_call() -> None:
    """What a replayed CUDA graph needs: the value is not baked in."""
    source, target = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    target.requires_grad_(False)
    nn.init.zeros_(target.weight)
    nn.init.ones_(source.weight)
    step = torch.tensor(0)

    @torch.compile(backend="eager", fullgraph=True)
    def next_momentum(step: Tensor) -> Tensor:
        return cosine_momentum(step, 2, base=0.0)

    for expected in (1.0, 1.0, 1.0):
        momentum_update_(target, source, next_momentum(step))
        step += 1
        assert target.weight.item() == expected
    nn.init.zeros_(target.weight)
    momentum_update_(target, source, next_momentum(torch.tensor(1)))
    assert target.weight.item() == 0.5


@pytest.mark.parametrize(
    ("momentum", "error", "message"),
    [
        (torch.zeros(1), ValueError, "`momentum` must have shape (); got (1,)"),
        (
            torch.tensor(1),
            TypeError,
            "`momentum` must be a floating-point tensor; got torch.int64. "
            "Convert it with `momentum.float()`",
        ),
        (
            torch.zeros((), device="meta"),
            ValueError,
            "`momentum` is on meta but `target` is on cpu; move them to the same device",
        ),
    ],
)
def test_unfit_momentum_tensor(momentum: Tensor, error: type[Exception], message: str) -> None:
    source = make_encoder()
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        momentum_update_(momentum_copy(source), source, momentum)


def test_swapped_modules_are_refused_and_unchanged() -> None:
    source = make_encoder()
    target = momentum_copy(make_encoder())
    before = copy.deepcopy(source)
    message = (
        "`target` asks for gradients (parameter '0.weight'), so it is not a momentum encoder; the "
        "order is momentum_update_(target, source, momentum), and the target is made with "
        "momentum_copy(source)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(source, target, 0.9)
    assert_same_state(source, before)


def test_unfit_buffers_change_nothing() -> None:
    source = make_encoder()
    target = momentum_copy(make_encoder())
    source.register_buffer("seen", torch.zeros(1))
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=r"same buffers; .* only in `source`: \['seen'\]$"):
        momentum_update_(target, source, 0.5, buffers="average")
    assert_same_state(target, before)


@pytest.mark.slow
def test_sharded_alike_is_the_average_of_one_process() -> None:
    """Two gloo ranks hold halves; gathered, they are what one process computes."""
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip(f"torch {torch.__version__} has no public fully_shard")
    source, target = shards.encoders()
    momentum_update_(target, source, shards.MOMENTUM, buffers="average")
    expected = target.state_dict()
    for states, refusals in run_on_ranks(2, shards.sharded_update):
        for state in states:
            assert state.keys() == expected.keys()
            for name, value in state.items():
                torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
        refusals[1] = refusals[1].partition(" and (5, 4)")[0]
        assert refusals == [
            "`module` is sharded and cannot be copied; call momentum_copy before sharding, then "
            "shard the copy by the same calls of fully_shard",
            "parameter '0.weight' must have the same shape, device and sharding in `target` and "
            "`source`; got (5, 4) on cpu",
            "FullyShardedDataParallel is not supported; shard with fully_shard instead, after "
            "momentum_copy",
        ]


def test_update_leaves_no_graph_and_frozen_parameters_are_averaged() -> None:
    target, source = make_encoder().requires_grad_(False), make_encoder()
    source[0].requires_grad_(False)
    momentum_update_(target, source, 0.0)
    assert_same_parameters(target, source)
    assert all(p.grad_fn is None for p in target.parameters())


def test_float32_average_of_bfloat16_weights_keeps_small_steps() -> None:
    source = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    target = momentum_copy(source).float()
    with torch.no_grad():
        source.weight.fill_(2.0)
        target.weight.fill_(1.0)
    for _ in range(100):
        momentum_update_(target, source, 0.999)
    assert target.weight.dtype == torch.float32
    torch.testing.assert_close(target.weight, torch.full((2, 2), 2 - 0.999**100))


def test_tied_parameters_move_once() -> None:
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    source[1].weight = source[0].weight
    target = momentum_copy(source)
    before = target[0].weight.clone()
    with torch.no_grad():
        source[0].weight.add_(1)
    momentum_update_(target, source, 0.5)
    torch.testing.assert_close(target[1].weight, before + 0.5)


class TestBuffers:
    @pytest.fixture
    def pair(self) -> tuple[nn.Module, nn.Module]:
        source = make_encoder()
        target = momentum_copy(source)
        source(torch.randn(16, 4))
        return target, source

    def test_keep_is_the_default(self, pair: tuple[nn.Module, nn.Module]) -> None:
        target, source = pair
        before = {name: b.clone() for name, b in target.named_buffers()}
        momentum_update_(target, source, 0.5)
        for name, b in target.named_buffers():
            assert torch.equal(b, before[name])

    def test_copy(self, pair: tuple[nn.Module, nn.Module]) -> None:
        target, source = pair
        momentum_update_(target, source, 0.5, buffers="copy")
        assert int(target[1].num_batches_tracked) == 1
        for name, b in target.named_buffers():
            assert torch.equal(b, source.get_buffer(name))
            assert b.data_ptr() != source.get_buffer(name).data_ptr()

    def test_average(self, pair: tuple[nn.Module, nn.Module]) -> None:
        target, source = pair
        momentum_update_(target, source, 0.75, buffers="average")
        # A fresh batch norm has mean 0 and variance 1.
        torch.testing.assert_close(target[1].running_mean, 0.25 * source[1].running_mean)
        torch.testing.assert_close(target[1].running_var, 0.75 + 0.25 * source[1].running_var)
        assert int(target[1].num_batches_tracked) == 1

    def test_unknown_policy(self, pair: tuple[nn.Module, nn.Module]) -> None:
        message = "`buffers` must be one of ('keep', 'copy', 'average'); got 'mean'"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            momentum_update_(*pair, 0.5, buffers="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_momentum_out_of_range(momentum: float) -> None:
    source = make_encoder()
    message = f"`momentum` must be in [0, 1]; got {momentum}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(momentum_copy(source), source, momentum)


def test_same_module() -> None:
    source = make_encoder()
    message = (
        "`target` and `source` are the same module; make the target with momentum_copy(source)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(wrap_compiled(source), source, 0.9)


def test_other_names_change_nothing() -> None:
    target = momentum_copy(nn.Sequential(nn.Linear(2, 2)))
    source = nn.Sequential(nn.Linear(2, 2, bias=False))
    before = target[0].weight.clone()
    message = (
        "`target` and `source` must have the same parameters; "
        "only in `target`: ['0.bias'], only in `source`: []"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(target, source, 0.9)
    assert torch.equal(target[0].weight, before)


def test_other_shape() -> None:
    message = (
        "parameter 'weight' must have the same shape, device and sharding in `target` and "
        "`source`; got (2, 3) on cpu and (2, 4) on cpu"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(momentum_copy(nn.Linear(3, 2)), nn.Linear(4, 2), 0.9)


def test_other_device() -> None:
    message = (
        "parameter 'weight' must have the same shape, device and sharding in `target` and "
        "`source`; got (2, 3) on cpu and (2, 3) on meta"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        momentum_update_(momentum_copy(nn.Linear(3, 2)), nn.Linear(3, 2, device="meta"), 0.9)


def test_cosine_starts_at_base_ends_at_one_and_grows() -> None:
    values = [cosine_momentum(step, 50, base=0.9) for step in range(51)]
    assert values[0] == pytest.approx(0.9, abs=1e-15)
    assert values[50] == 1.0
    assert values[25] == pytest.approx(0.95)
    assert all(a < b for a, b in itertools.pairwise(values))
    for step, value in enumerate(values):  # symmetric about the middle
        assert value + values[50 - step] == pytest.approx(1.9)


def test_cosine_of_a_tensor_is_that_of_the_number() -> None:
    for step in range(51):
        of_tensor = cosine_momentum(torch.tensor(step), 50, base=0.9)
        assert (of_tensor.shape, of_tensor.dtype) == ((), torch.float64)
        assert of_tensor.item() == pytest.approx(cosine_momentum(step, 50, base=0.9), abs=1e-15)
    for step, end in ((51, 1.0), (-1, 0.9)):  # not checked, so it stays at the end
        assert cosine_momentum(torch.tensor(step), 50, base=0.9).item() == pytest.approx(end)
    with pytest.raises(ValueError, match=r"^`step` must have shape \(\); got \(1,\)$"):
        cosine_momentum(torch.zeros(1), 50)


def test_cosine_default_base() -> None:
    assert cosine_momentum(0, 10) == pytest.approx(0.994)


@pytest.mark.parametrize(
    ("step", "total", "base", "message"),
    [
        (11, 10, 0.9, "`step` must be in [0, 10] (from `total_steps`); got 11"),
        (-1, 10, 0.9, "`step` must be in [0, 10] (from `total_steps`); got -1"),
        (0, 0, 0.9, "`total_steps` must be at least 1; got 0"),
        (0, 10, 1.5, "`base` must be in [0, 1]; got 1.5"),
    ],
)
def test_cosine_out_of_range(step: int, total: int, base: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cosine_momentum(step, total, base=base)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0)


def assert_same_parameters(
    a: nn.Module, b: nn.Module, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        expected: Tensor = q.detach()
        torch.testing.assert_close(p.detach(), expected, rtol=rtol, atol=atol)
