"""Where and how a queue is built, filled and loaded, and what must not change with it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iivcl import IIVCLLoss, MoCoQueue, NNSupportQueue, _precision
from iivcl.queues import exact_topk


class DefaultDtype:
    """What Lightning's ``bf16-true`` does."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default bfloat16": lambda: DefaultDtype(torch.bfloat16),  # type: ignore[return-value]
    "default float64": lambda: DefaultDtype(torch.float64),  # type: ignore[return-value]
    "default device": lambda: torch.device("cpu"),
}


def step(queue: NNSupportQueue, keys: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    query = keys.detach().clone().requires_grad_()
    out = IIVCLLoss(num_neighbors=2)(query, keys, queue, ids=ids)
    (gradient,) = torch.autograd.grad(out.loss, query)
    queue.enqueue(keys, ids)
    return out.loss.detach(), gradient, *out.neighbors


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("resized", [False, True])
def test_a_queue_is_the_same_wherever_it_was_built(name: str, resized: bool) -> None:
    keys = [torch.randn(5, 4) for _ in range(4)]
    plain = NNSupportQueue(12, 4)
    plain.enqueue(keys[0], torch.arange(5))
    with SURROUNDINGS[name]():
        queue = NNSupportQueue(7 if resized else 12, 4)
        queue.enqueue(keys[0], torch.arange(5))
        if resized:
            queue.resize_(12)
            plain.resize_(12)
    for call in range(1, 4):
        ids = torch.arange(5) + 5 * call
        for a, b in zip(step(queue, keys[call], ids), step(plain, keys[call], ids), strict=True):
            assert torch.equal(a, b)
    for key, value in plain.state_dict().items():
        assert queue.state_dict()[key].dtype == value.dtype
        assert torch.equal(queue.state_dict()[key], value)


def filled(size: int = 6) -> NNSupportQueue:
    queue = NNSupportQueue(size, 3)
    queue.enqueue(torch.randn(4, 3), torch.tensor([3, 1, 4, 1]))
    return queue


def test_assign_fills_a_queue_that_was_built_on_meta() -> None:
    saved = filled()
    with torch.device("meta"):
        queue = NNSupportQueue(6, 3)
    queue.load_state_dict(saved.state_dict(), assign=True)
    for key, value in saved.state_dict().items():
        assert torch.equal(queue.state_dict()[key], value)
    assert queue.nearest(torch.randn(2, 3), 2, ids=torch.zeros(2, dtype=torch.int64)).valid.all()


def test_assign_keeps_keys_float32() -> None:
    state = filled().state_dict()
    state["keys"] = state["keys"].half()
    queue = NNSupportQueue(6, 3)
    queue.load_state_dict(state, assign=True)
    assert queue.keys.dtype == torch.float32


def test_loading_into_meta_without_assign_is_refused() -> None:
    with torch.device("meta"):
        parent = nn.ModuleDict({"queue": NNSupportQueue(6, 3)})
    state = nn.ModuleDict({"queue": filled()}).state_dict()
    message = "queue.keys is on meta, which holds no values; pass assign=True"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        parent.load_state_dict(state)


class Labelled(MoCoQueue):
    """A queue with a buffer, a parameter and a child of its own."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.register_buffer("labels", torch.zeros(6))
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize("prefix", ["", "inner."])
def test_subclasses_load_what_they_save(prefix: str) -> None:
    saved, queue = Labelled(), Labelled()
    nn.init.constant_(saved.scale, 7.0)
    saved.labels += torch.arange(6)
    saved.enqueue(torch.randn(2, 3))
    outer = [nn.ModuleDict({"inner": each}) if prefix else each for each in (saved, queue)]
    outer[1].load_state_dict(outer[0].state_dict())
    for key, value in saved.state_dict().items():
        assert torch.equal(queue.state_dict()[key], value)
    state = outer[0].state_dict() | {f"{prefix}label": torch.zeros(6)}
    with pytest.raises(RuntimeError, match=rf'Unexpected key\(s\) in state_dict: "{prefix}label"'):
        outer[1].load_state_dict(state)


# --- any finite key, any mask, ids of any width --------------------------------------------------


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e20, 3e38])
@pytest.mark.parametrize("compiling", [False, True])
def test_keys_and_queries_of_any_finite_length(
    scale: float, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    keys = torch.randn(4, 3).sign()
    queue = NNSupportQueue(4, 3)
    queue.enqueue(keys * scale)
    assert queue.valid.all()
    torch.testing.assert_close(queue.keys, F.normalize(keys, dim=1))
    found = queue.nearest(keys * scale)
    torch.testing.assert_close(found.similarity, torch.ones(4, 1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("rows", [40, 5000])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("batch", [3, 33])
def test_rows_that_the_mask_excludes_are_never_found(
    bad: float, rows: int, pairs: bool, batch: int
) -> None:
    query, bank, mask = torch.randn(batch, 8), torch.randn(rows, 8), torch.rand(rows) < 0.8
    bank[:, 0] = torch.where(mask, bank[:, 0], bad)
    values, indices = exact_topk(query, bank, 5, mask=mask.expand(batch, -1) if pairs else mask)
    expected, _ = (query @ bank[mask].T).topk(5)
    torch.testing.assert_close(values, expected)
    assert mask[indices].all()


def test_very_negative_products_are_products() -> None:
    bank = -torch.tensor([[1e31], [2e31], [5e29], [1.0]])
    values, indices = exact_topk(torch.ones(1, 1), bank, 4)
    assert indices.tolist() == [[3, 2, 0, 1]]
    torch.testing.assert_close(values[0], bank[[3, 2, 0, 1], 0])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_ids_that_torch_cannot_compare_are_refused(dtype: torch.dtype) -> None:
    name = str(dtype)
    message = f"`ids` must be int64; got {name}. Use `ids.to(torch.int64)`"
    for call in (
        lambda ids: MoCoQueue(4, 2).enqueue(torch.ones(2, 2), ids),
        lambda ids: filled().nearest(torch.ones(2, 3), ids=ids),
        lambda ids: IIVCLLoss()(torch.ones(2, 3), torch.ones(2, 3), filled(), ids=ids),
    ):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_ids_of_other_widths_mean_the_same(dtype: torch.dtype) -> None:
    queue, ids = filled(), torch.tensor([3, 1]).to(dtype)
    found = queue.nearest(torch.randn(2, 3), 2, ids=ids)
    assert (queue.ids[found.indices] != ids[:, None]).all()
    IIVCLLoss(num_neighbors=1, batch_negatives=True)(
        torch.randn(2, 3), torch.randn(2, 3), queue, ids=ids
    )


# --- threads -------------------------------------------------------------------------------------


def precision() -> list[str]:
    return [getattr(s.owner, s.name) for s in _precision._SWITCHES.values()]


def test_the_precision_of_the_program_is_back_after_blocks_in_several_threads() -> None:
    caller = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    inside, leave = threading.Barrier(9), [threading.Event() for _ in range(8)]
    before, seen = precision(), []
    with _precision.full_float32(torch.zeros(1)):
        alone = precision()
    assert alone != before

    def work(number: int) -> None:
        with _precision.full_float32(torch.zeros(1)):
            inside.wait()
            leave[number].wait()
            seen.append(precision())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    try:
        for thread in threads:
            thread.start()
        inside.wait()
        for number in (3, 0, 7, 1, 2, 6, 5, 4):  # not in the order of their coming
            leave[number].set()
            threads[number].join()
        assert precision() == before
        assert seen == [alone] * 8
    finally:
        torch.set_float32_matmul_precision(caller)


def test_lookups_in_eight_threads_find_what_one_finds() -> None:
    query, bank = torch.randn(40, 64), torch.randn(3000, 64)
    expected, found = exact_topk(query, bank, 3), [None] * 8
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:

        def work(number: int) -> None:
            for _ in range(5):
                found[number] = exact_topk(query, bank, 3)  # type: ignore[call-overload]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for each in found:
        assert each is not None
        for a, b in zip(each, expected, strict=True):
            assert torch.equal(a, b)
