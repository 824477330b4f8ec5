"""The ring and its lookup, against a deque and against brute force; one test per known fault."""

from __future__ import annotations

import copy
import re
from collections import deque

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from iivcl import IIVCLLoss, MoCoQueue, NNSupportQueue
from iivcl.losses import multi_positive_info_nce
from iivcl.queues import agreed


def rows_in_order(queue: MoCoQueue) -> list[tuple[int, list[float]]]:
    """(id, key) of the valid rows, oldest first."""
    order = (int(queue.cursor) + torch.arange(queue.size)) % queue.size
    return [(int(queue.ids[i]), queue.keys[i].tolist()) for i in order.tolist() if queue.valid[i]]


@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=8))
@settings(max_examples=100, deadline=None)
def test_ring_equals_a_deque(size: int, batches: list[int]) -> None:
    queue, model = MoCoQueue(size, 2), deque[tuple[int, list[float], int]](maxlen=size)
    next_id = 0
    for call, batch in enumerate(batches):
        keys, ids = torch.randn(batch, 2), torch.arange(next_id, next_id + batch)
        next_id += batch
        queue.enqueue(keys, ids)
        for key, i in zip(F.normalize(keys, dim=1).tolist(), ids.tolist(), strict=True):
            model.append((i, key, call))
    assert rows_in_order(queue) == [(i, key) for i, key, _ in model]
    assert len(queue) == int(queue.filled) == len(model)
    ages = {int(i): int(a) for i, a in zip(queue.ids, queue.ages, strict=True) if i >= 0}
    assert ages == {i: len(batches) - 1 - call for i, _, call in model}
    assert (queue.ages[~queue.valid] == -1).all()


@given(
    size=st.integers(1, 40),
    batches=st.lists(st.integers(0, 20), max_size=5),
    queries=st.integers(0, 6),
    share=st.floats(0, 1),
    min_age=st.integers(0, 3),
    num_ids=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_nearest_equals_brute_force(
    size: int, batches: list[int], queries: int, share: float, min_age: int, num_ids: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = NNSupportQueue(size, 4)
    for batch in batches:
        ids = torch.randint(num_ids, (batch,), generator=generator)
        queue.enqueue(torch.randn(batch, 4, generator=generator), ids)
    query = F.normalize(torch.randn(queries, 4, generator=generator), dim=1)
    ids = torch.randint(num_ids, (queries,), generator=generator)
    k = 1 + int(share * (size - 1))
    found = queue.nearest(query, k, ids=ids, min_age=min_age)

    eligible = queue.valid & (queue.ages >= min_age) & (queue.ids != ids[:, None])
    values, rows = reference.nearest_rows(query, queue.keys, eligible, k)
    for b in range(queries):
        n = len(rows[b])
        assert found.valid[b].tolist() == [True] * n + [False] * (k - n)
        assert (found.similarity[b, n:] == -torch.inf).all()
        assert (found.indices[b, n:] == 0).all()
        assert found.similarity[b, :n].tolist() == pytest.approx(values[b], abs=1e-6)
        assert set(found.indices[b, :n].tolist()) == set(rows[b])


@given(
    rows=st.integers(1, 12),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    queries=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_agreed_rows_are_the_common_ones_by_sets(
    rows: int, sizes: tuple[int, int], queries: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = NNSupportQueue(rows, 3)
    count = int(torch.randint(rows + 1, (), generator=generator))  # of rows that were written
    queue.enqueue(torch.randn(count, 3, generator=generator), torch.arange(count))
    ids = torch.randint(rows, (queries,), generator=generator)
    clips = torch.randn(2, queries, 3, generator=generator)
    given_two = [
        queue.nearest(clip, min(k, rows), ids=ids) for clip, k in zip(clips, sizes, strict=True)
    ]
    kept_two = agreed(*given_two)
    for found, kept, clip in zip(given_two, kept_two, clips, strict=True):
        assert [part.shape for part in kept] == [part.shape for part in found]
        cosine = F.normalize(clip, dim=1) @ queue.keys.T
        for b in range(queries):
            common = set.intersection(*(set(f.indices[b][f.valid[b]].tolist()) for f in given_two))
            best = sorted(common, key=lambda row: -cosine[b, row].item())
            n, k = len(best), found.indices.shape[1]
            assert kept.indices[b].tolist() == best + [0] * (k - n)
            assert kept.valid[b].tolist() == [True] * n + [False] * (k - n)
            torch.testing.assert_close(kept.similarity[b, :n], cosine[b, best])
            assert (kept.similarity[b, n:] == -torch.inf).all()
    for once, again in zip(kept_two, agreed(*kept_two), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_agreed_compiles_and_the_loss_takes_what_it_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    queue, ids = NNSupportQueue(32, 4), torch.arange(6)
    queue.enqueue(torch.randn(32, 4, generator=generator), torch.arange(32))
    clips = torch.randn(2, 6, 4, generator=generator)
    found = [queue.nearest(clip, 8, ids=ids) for clip in clips]
    kept = agreed(*found)
    assert 0 < kept[0].valid.sum() < kept[0].valid.numel()
    compiled = torch.compile(agreed, fullgraph=True)(*found)
    for one, other in zip(kept, compiled, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    criterion = IIVCLLoss(num_neighbors=0)
    out = criterion(clips[0], clips[1], queue, ids=ids, neighbors=kept[1])
    mask = torch.zeros(6, 32, dtype=torch.bool)
    mask[kept[1].valid.nonzero()[:, 0], kept[1].indices[kept[1].valid]] = True
    own = queue.ids == ids[:, None]
    expected = multi_positive_info_nce(clips[0], queue.keys, mask, ignore_mask=own)
    torch.testing.assert_close(out.inter, expected)


def test_large_ids_are_compared_in_all_their_64_bits() -> None:
    queue = NNSupportQueue(4096, 8)
    low, high = 5, 5 + 2**32  # equal in the lower half
    ids = torch.full((4096,), low)
    ids[7], ids[9] = high, -low
    queue.enqueue(torch.randn(4096, 8), ids)
    for own, others in ((low, {7, 9}), (high, set(range(4096)) - {7})):
        found = queue.nearest(torch.randn(3, 8), 2, ids=torch.full((3,), own))
        assert found.valid.all()
        assert set(found.indices.flatten().tolist()) <= others


# --- faults of other queues that cannot happen here ---------------------------------------------


def test_no_row_is_lost_on_wrap() -> None:
    queue = MoCoQueue(8, 2)
    for call in range(3):
        queue.enqueue(torch.randn(3, 2), torch.arange(3 * call, 3 * call + 3))
    assert [i for i, _ in rows_in_order(queue)] == list(range(1, 9))


def test_capacity_need_not_be_a_multiple_of_the_batch() -> None:
    queue = MoCoQueue(7, 2)
    queue.enqueue(torch.randn(16, 2), torch.arange(16))
    assert [i for i, _ in rows_in_order(queue)] == list(range(9, 16))


def test_checkpoint_holds_the_whole_queue_and_its_future() -> None:
    queue = NNSupportQueue(16, 4)
    for call in range(3):
        queue.enqueue(torch.randn(7, 4), torch.arange(7 * call, 7 * call + 7))
    resumed = NNSupportQueue(16, 4)
    resumed.load_state_dict(queue.state_dict())
    query, more = torch.randn(5, 4), torch.randn(6, 4)
    for _ in range(2):
        ids = torch.arange(5)
        for ours, theirs in zip(
            queue.nearest(query, 3, ids=ids, min_age=1),
            resumed.nearest(query, 3, ids=ids, min_age=1),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
        for each in (queue, resumed):
            each.enqueue(more, torch.arange(50, 56))
    assert all(torch.equal(v, resumed.state_dict()[n]) for n, v in queue.state_dict().items())


def test_state_dict_is_a_view_and_a_deepcopy_is_not() -> None:
    queue = MoCoQueue(4, 2)
    twin = copy.deepcopy(queue)
    queue.enqueue(torch.ones(1, 2), torch.tensor([3]))
    assert len(queue) == 1
    assert len(twin) == 0


def test_lookup_before_enqueue_never_finds_the_query_itself() -> None:
    queue = NNSupportQueue(8, 4)
    queue.enqueue(torch.randn(8, 4), torch.arange(8))
    query, ids = torch.randn(2, 4), torch.tensor([20, 21])
    before = queue.nearest(query, 1, ids=ids)
    assert (before.similarity < 0.9999).all()
    queue.enqueue(query, ids)
    after = queue.nearest(query, 1, ids=ids)  # now in the queue, and still not found
    assert (queue.ids[after.indices.flatten()] != ids).all()


def test_an_unfilled_queue_holds_no_random_rows() -> None:
    queue = NNSupportQueue(64, 4)
    found = queue.nearest(torch.randn(3, 4), 5)
    assert not found.valid.any()
    queue.enqueue(torch.randn(2, 4), torch.tensor([1, 2]))
    found = queue.nearest(torch.randn(3, 4), 5, ids=torch.tensor([7, 8, 9]))
    assert found.valid.sum(1).tolist() == [2, 2, 2]
    assert set(found.indices[found.valid].tolist()) == {0, 1}


def test_half_precision_queries_are_taken() -> None:
    queue = NNSupportQueue(4, 2)
    queue.enqueue(torch.eye(2, dtype=torch.float16), torch.arange(2))
    found = queue.nearest(torch.eye(2, dtype=torch.bfloat16), 1, ids=torch.tensor([5, 6]))
    assert found.indices.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("length", [1e-300, 1e-60, 1e60, 1e300])
def test_float64_rows_of_any_finite_length_are_taken(length: float) -> None:
    queue = NNSupportQueue(3, 2, check_finite=True)
    queue.enqueue(torch.eye(2, dtype=torch.float64) * length)
    assert torch.equal(queue.keys[:2], torch.eye(2))
    found = queue.nearest(torch.tensor([[0.0, length]], dtype=torch.float64), 1)
    assert (found.indices.item(), found.similarity.item(), found.valid.item()) == (1, 1.0, True)


def test_half_of_the_parent_keeps_ids_and_precision() -> None:
    queue = NNSupportQueue(4, 2)
    queue.enqueue(torch.tensor([[1.0, 3.0]]), torch.tensor([2**40 + 1]))
    keys = queue.keys.clone()
    nn.ModuleDict({"queue": queue, "head": nn.Linear(2, 2)}).half().to(torch.bfloat16)
    assert queue.keys.dtype == torch.float32
    assert torch.equal(queue.keys, keys)
    assert queue.ids[0] == 2**40 + 1


def test_the_queue_moves_with_its_parent() -> None:
    parent = nn.ModuleDict({"queue": MoCoQueue(4, 2)}).to("meta")
    queue = parent["queue"]
    for name in ("keys", "ids", "stamps", "cursor", "step"):
        assert getattr(queue, name).device.type == "meta", name


def test_state_is_no_buffer_that_ddp_would_broadcast() -> None:
    queue = MoCoQueue(4, 2)
    assert list(queue.buffers()) == list(queue.parameters()) == []
    assert set(queue.state_dict()) == {"keys", "ids", "stamps", "cursor", "step", "has_ids"}


# --- state ---------------------------------------------------------------------------------------


@given(size=st.integers(1, 9), new_size=st.integers(1, 9), batches=st.lists(st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_resize_keeps_the_newest_rows_and_goes_on(
    size: int, new_size: int, batches: list[int]
) -> None:
    queue = MoCoQueue(size, 2)
    for n in batches:
        queue.enqueue(torch.randn(n, 2), torch.randint(99, (n,)))
    model = deque(rows_in_order(queue), maxlen=new_size)
    assert queue.resize_(new_size) is queue
    assert rows_in_order(queue) == list(model)
    key = torch.randn(1, 2)
    queue.enqueue(key, torch.tensor([100]))
    model.append((100, F.normalize(key, dim=1)[0].tolist()))
    assert rows_in_order(queue) == list(model)


def test_a_checkpoint_of_another_size_is_refused_whole() -> None:
    saved = MoCoQueue(8, 2)
    saved.enqueue(torch.ones(3, 2), torch.arange(3))
    queue = MoCoQueue(4, 2)
    message = (
        "keys: the checkpoint has (8, 2), this queue (4, 2); ids: the checkpoint has (8,), this "
        "queue (4,); stamps: the checkpoint has (8,), this queue (4,). Build the queue with the "
        "checkpoint's size, load it, and then call `resize_(size)` to keep the newest rows"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        queue.load_state_dict(saved.state_dict())
    assert len(queue) == 0


def test_missing_and_unexpected_entries_are_reported() -> None:
    state = MoCoQueue(4, 2).state_dict()
    del state["cursor"]
    state["pointer"] = torch.tensor(0)
    with pytest.raises(RuntimeError) as raised:
        MoCoQueue(4, 2).load_state_dict(state)
    assert 'Missing key(s) in state_dict: "cursor"' in str(raised.value)
    assert 'Unexpected key(s) in state_dict: "pointer"' in str(raised.value)


def test_whether_rows_have_ids_is_in_the_checkpoint() -> None:
    queue = MoCoQueue(4, 2)
    queue.enqueue(torch.ones(1, 2), torch.tensor([1]))
    resumed = MoCoQueue(4, 2)
    resumed.load_state_dict(queue.state_dict())
    with pytest.raises(ValueError, match="must be given"):
        resumed.enqueue(torch.ones(1, 2))


# --- rows that are not finite --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_poisons_neither_lookup_nor_loss(bad: float) -> None:
    queue = NNSupportQueue(4, 3)
    keys = torch.eye(3)
    keys[1, 1] = bad
    queue.enqueue(keys, torch.arange(3))
    assert queue.valid.tolist() == [True, False, True, False]
    assert queue.keys.isfinite().all()
    query = torch.eye(3).requires_grad_()
    out = IIVCLLoss(num_neighbors=2)(query, torch.eye(3), queue, ids=torch.arange(10, 13))
    out.loss.backward()
    assert out.loss.isfinite()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert 1 not in out.neighbors.indices[out.neighbors.valid].tolist()


def test_a_query_that_is_not_finite_has_no_neighbours_and_disturbs_no_other() -> None:
    queue = NNSupportQueue(4, 2)
    queue.enqueue(torch.eye(2), torch.arange(2))
    query = torch.tensor([[torch.nan, 0.0], [0.0, 1.0]])
    found = queue.nearest(query, 1, ids=torch.tensor([7, 8]))
    assert found.valid.tolist() == [[False], [True]]
    assert found.indices.tolist() == [[0], [1]]


def test_opt_in_check_refuses_rows_that_are_not_finite_and_writes_nothing() -> None:
    queue = MoCoQueue(4, 2, check_finite=True)
    keys = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, torch.inf]])
    message = "`keys` must be finite; rows [1, 2] are not. Nothing was written"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        queue.enqueue(keys, torch.arange(3))
    assert len(queue) == 0
    queue.enqueue(keys[:1])
    assert len(queue) == 1


# --- compilation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_lookup_loss_and_enqueue_compile_without_a_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    queue, twin = NNSupportQueue(50, 8), NNSupportQueue(50, 8)
    criterion = IIVCLLoss(num_neighbors=3, batch_negatives=True, min_age=1)

    def step(queue: NNSupportQueue, query: Tensor, key: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        out = criterion(query, key, queue, ids=ids)
        queue.enqueue(key, ids)
        return out.intra, out.inter, out.neighbors.indices

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(4):
        query, key = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8)
        ids = torch.randint(30, (16,))
        expected, found = step(twin, query, key, ids), compiled(queue, query, key, ids)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(o[0] + o[1], query)[0] for o in (expected, found)]
        torch.testing.assert_close(*grads)
    assert all(torch.allclose(v, queue.state_dict()[n]) for n, v in twin.state_dict().items())


@pytest.mark.parametrize("size", [50, 5000])
def test_no_step_reads_a_value_on_the_host(size: int) -> None:
    """Tensors without values: whatever needs one, and so would wait for a GPU, raises here."""
    queue = NNSupportQueue(size, 8).to("meta")
    query = torch.randn(16, 8, device="meta", requires_grad=True)
    key, ids = torch.randn(16, 8, device="meta"), torch.empty(16, dtype=torch.int64, device="meta")
    for form in ("per_positive", "out", "in"):
        criterion = IIVCLLoss(form=form, batch_negatives=True, min_age=1)  # type: ignore[arg-type]
        out = criterion(query, key, queue, ids=ids)
        out.loss.backward()
        queue.enqueue(key, ids)
    assert out.neighbors.indices.shape == (16, 5)
    assert queue.filled.device.type == queue.ages.device.type == "meta"


# --- bad input -----------------------------------------------------------------------------------


def filled(**options: object) -> NNSupportQueue:
    queue = NNSupportQueue(4, 2, **options)  # type: ignore[arg-type]
    queue.enqueue(torch.eye(2), torch.arange(2))
    return queue


BAD_CALLS = [
    (lambda: MoCoQueue(0, 2), ValueError, "`size` must be at least 1; got 0"),
    (lambda: MoCoQueue(2, -1), ValueError, "`dim` must be at least 1; got -1"),
    (
        lambda: MoCoQueue(2, 2, distributed="all"),  # type: ignore[arg-type]
        ValueError,
        "`distributed` must be one of ('gather', 'local', 'shard'); got 'all'",
    ),
    (
        lambda: filled().enqueue(torch.zeros(3, 5), torch.arange(3)),
        ValueError,
        "`keys` must have shape (B, D) with D=2 (from `queue`); got (3, 5)",
    ),
    (
        lambda: filled().enqueue(torch.zeros(3, 2, dtype=torch.int32), torch.arange(3)),
        TypeError,
        "`keys` must be a floating-point tensor; got torch.int32. Convert it with `keys.float()`",
    ),
    (
        lambda: filled().enqueue(torch.zeros(3, 2), torch.arange(2)),
        ValueError,
        "`ids` must have shape (B,) with B=3 (from `keys`); got (2,)",
    ),
    (
        lambda: filled().enqueue(torch.zeros(3, 2), torch.zeros(3)),
        TypeError,
        "`ids` must be an integer tensor; got torch.float32",
    ),
    (
        lambda: filled().enqueue(torch.zeros(3, 2)),
        ValueError,
        "`ids` must be given: this queue was filled with ids; got None",
    ),
    (
        lambda: filled().nearest(torch.zeros(3, 2)),
        ValueError,
        "`ids` must be given: this queue was filled with ids; got None",
    ),
    (
        lambda: filled().nearest(torch.zeros(3, 2), 5, ids=torch.arange(3)),
        ValueError,
        "`k` must be in [1, 4], the size of the queue; got 5",
    ),
    (
        lambda: filled().nearest(torch.zeros(3, 2), 1, ids=torch.arange(3), min_age=-1),
        ValueError,
        "`min_age` must be at least 0; got -1",
    ),
    (
        lambda: filled().nearest(torch.zeros(3, 2, device="meta"), 1),
        ValueError,
        "`query` is on meta but `queue` is on cpu; move them to the same device",
    ),
    (lambda: filled().resize_(0), ValueError, "`size` must be at least 1; got 0"),
    (
        lambda: agreed(*(filled().nearest(torch.zeros(n, 2), ids=torch.arange(n)) for n in (3, 2))),
        ValueError,
        "`second.indices` must have shape (B, k) with B=3 (from `first`); got (2, 1)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()  # type: ignore[operator]


def test_ids_given_to_a_queue_without_ids() -> None:
    queue = NNSupportQueue(4, 2)
    queue.enqueue(torch.eye(2))
    assert queue.nearest(torch.eye(2)).valid.all()
    message = (
        "`ids` were given, but this queue was filled without ids; "
        "pass ids to every call of `enqueue` or to none"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        queue.nearest(torch.eye(2), ids=torch.arange(2))


def test_repr_names_size_and_distribution() -> None:
    assert repr(NNSupportQueue(8, 2)) == "NNSupportQueue(size=8, dim=2, distributed='gather')"
