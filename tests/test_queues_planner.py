"""What the planner promises against what queues hold and lookups allocate."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from iivcl import _engine
from iivcl.queues import MoCoQueue, NNSupportQueue, _plan, estimate, exact_topk

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "queues.md"


def peak_allocation(run: Callable[[], object], tmp_path: Path) -> int:
    """Most bytes of tensors that ``run`` had allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    trace = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    memory = [event["args"] for event in events if event["name"] == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - before


@pytest.mark.parametrize(("size", "dim"), [(1, 1), (1000, 7), (4096, 128)])
def test_held_bytes_are_those_of_the_state(size: int, dim: int) -> None:
    queue = MoCoQueue(size, dim)
    state = [queue.keys, queue.ids, queue.stamps, queue.cursor, queue.step]
    assert estimate(size, dim, 1).held_bytes == sum(tensor.nbytes for tensor in state)


@pytest.mark.parametrize(
    ("size", "dim", "batch", "k", "min_age"),
    [
        (65536, 128, 256, 5, 0),
        (200_000, 32, 64, 20, 0),  # several chunks
        (65536, 8, 4, 1, 1),  # ages are the most
        (300, 8, 32, 7, 0),  # searched without blocks
        (5000, 16, 64, 3, 0),  # a tile and some rows
        (70_001, 4, 100, 40, 0),
        (4096, 64, 512, 100, 0),
        (4096, 256, 8, 4096, 0),  # the winners are the most
    ],
)
def test_lookup_allocates_at_most_the_work_space_and_not_far_less(
    size: int, dim: int, batch: int, k: int, min_age: int, tmp_path: Path
) -> None:
    queue = NNSupportQueue(size, dim)
    queue.enqueue(torch.randn(size, dim), torch.arange(size) // 4)
    query, ids = torch.randn(batch, dim), torch.arange(batch)
    peak = peak_allocation(lambda: queue.nearest(query, k, ids=ids, min_age=min_age), tmp_path)
    bound = estimate(size, dim, batch, k).workspace_bytes
    assert peak <= bound <= 2 * peak


@pytest.mark.parametrize(
    ("size", "batch", "k"),
    [
        (70_001, 100, 5),  # in blocks, of one tile
        (20_000, 64, 5),  # topk of all
        (3000, 64, 700),
    ],
)
def test_lookup_on_a_gpu_allocates_at_most_the_work_space(
    size: int, batch: int, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its engine does on tensors of the CPU; kernels of a GPU take some more inside."""
    monkeypatch.setattr(_engine, "on_cpu", lambda tensor: False)
    queue = NNSupportQueue(size, 16)
    queue.enqueue(torch.randn(size, 16), torch.arange(size) // 4)
    query, ids = torch.randn(batch, 16), torch.arange(batch)
    peak = peak_allocation(lambda: queue.nearest(query, k, ids=ids), tmp_path)
    assert peak <= estimate(size, 16, batch, k, device="cuda").workspace_bytes


def test_lookup_on_a_gpu_in_tiles_allocates_at_most_the_work_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan, "_GPU_TILE_BYTES", 2**22)
    test_lookup_on_a_gpu_allocates_at_most_the_work_space(70_001, 100, 5, tmp_path, monkeypatch)
    test_lookup_on_a_gpu_allocates_at_most_the_work_space(70_001, 100, 20, tmp_path, monkeypatch)


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_work_space_covers_banks_of_other_dtypes(
    dtype: torch.dtype, batch: int, tmp_path: Path
) -> None:
    """And is small beside a copy of the bank in float32, 34 MiB."""
    query, bank = torch.randn(batch, 128), torch.randn(70_000, 128).to(dtype)
    peak = peak_allocation(lambda: exact_topk(query, bank, 5), tmp_path)
    assert peak <= estimate(70_000, 128, batch, 5, dtype=dtype).workspace_bytes < 2**24


def test_flops_are_those_of_the_product() -> None:
    queue = NNSupportQueue(3000, 24)
    queue.enqueue(torch.randn(3000, 24))
    with FlopCounterMode(display=False) as counter:
        queue.nearest(torch.randn(11, 24), k=3)
    assert estimate(3000, 24, batch=11, k=3).flops == counter.get_total_flops()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_work_space_grows_with_the_rows_and_not_with_batch_times_rows(device: str) -> None:
    def work_space(size: int, batch: int) -> int:
        return estimate(size, 128, batch, 5, device=device).workspace_bytes

    small, large = 2**24, 2**27
    added = work_space(large, 256) - work_space(small, 256)
    assert added <= 20 * (large - small)
    assert work_space(large, 512) - work_space(large, 256) < large


def test_ranks_share_the_memory_of_a_sharded_queue_and_the_work_of_all_queries() -> None:
    whole = estimate(8000, 16, batch=4 * 32, k=3)
    part = estimate(2000, 16, batch=32, k=3, world_size=4, distributed="shard")
    assert part.flops == whole.flops // 4
    assert part.held_bytes == (whole.held_bytes - 16) // 4 + 16
    # From each of 3 ranks 32 queries or keys with their ids, and 32 times 3 values and rows.
    assert part.communicated_bytes == 3 * 32 * (16 * 4 + 8 + 3 * (4 + 8))


def test_nothing_is_sent_to_queues_of_their_own_and_every_key_to_gathered_ones() -> None:
    assert estimate(64, 8, 4, world_size=8, distributed="local").communicated_bytes == 0
    assert estimate(64, 8, 4, world_size=1, distributed="shard").communicated_bytes == 0
    assert estimate(64, 8, 4, world_size=8).communicated_bytes == 7 * 4 * (8 * 4 + 8)


def test_plans_for_a_device_that_is_not_here() -> None:
    cost = estimate(10**8, 128, batch=256, k=5, device="cuda")
    assert cost.held_bytes == 10**8 * (4 * 128 + 16) + 16


def test_the_tables_in_the_docs_are_what_their_code_prints() -> None:
    blocks = re.findall(r"```python\n(.*?)```\n\n(\|.*?\n)\n", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block, table in blocks[:2]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        assert printed.getvalue() == table


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"size": 0}, ValueError, "`size` must be at least 1; got 0"),
    ({"batch": -1}, ValueError, "`batch` must be at least 1; got -1"),
    ({"world_size": 0}, ValueError, "`world_size` must be at least 1; got 0"),
    ({"dtype": torch.int8}, TypeError, "`dtype` must be a floating-point dtype; got torch.int8"),
    (
        {"distributed": "all"},
        ValueError,
        "`distributed` must be one of ('gather', 'local', 'shard'); got 'all'",
    ),
    ({"device": "tpu"}, ValueError, "`device` must be one of ('cpu', 'cuda'); got 'tpu'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"size": 8, "dim": 4, "batch": 2, "k": 1} | change
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        estimate(**arguments)
