"""Several real gloo ranks against one process that sees everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distributed_workers as workers
import pytest
import torch
from torch import Tensor

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl import distributed as D
from iivcl.losses import IIVCLOutput
from iivcl.testing import run_on_ranks

Ranks = Callable[..., list[Any]]
LOSSES: dict[int, list[tuple[dict[str, Any], bool]]] = {
    2: [
        ({"num_neighbors": 3}, False),
        ({"num_neighbors": 3, "batch_negatives": True, "form": "per_positive"}, True),
        ({"num_neighbors": 0}, True),
    ],
    4: [({"num_neighbors": 2, "batch_negatives": True, "form": "in"}, True)],
}
LOOKUPS = {2: [(3, 0, False), (9, 1, True)], 4: [(2, 0, True)]}  # k, min_age, uneven
SHARED = ("gather", "shard")


def on(world: int, *values: Any) -> Any:
    """Give the arguments of a case; four processes take long to start."""
    return pytest.param(world, *values, marks=[pytest.mark.slow] if world == 4 else [])


def jobs(world: int) -> list[tuple[Any, ...]]:
    return [
        (workers.collectives,),
        (workers.uneven_shuffle,),
        (workers.gather_queue, False),
        (workers.gather_queue, True),
        (workers.local_queue,),
        (workers.out_of_sync,),
        *((workers.shard_lookup, *lookup) for lookup in LOOKUPS[world]),
        *(
            (workers.ddp_keeps_queues, distribution)
            for distribution in ("gather", "local", "shard")
        ),
        *(
            (workers.loss_of_all, distribution, *loss)
            for distribution in SHARED
            for loss in LOSSES[world]
        ),
        *((workers.learned_temperature, distribution, world == 4) for distribution in SHARED),
    ]


@pytest.fixture(scope="module")
def on_ranks() -> Ranks:
    """What each rank returns for a job; all jobs of a world run in one set of processes."""
    results: dict[int, list[list[Any]]] = {}

    def find(world: int, *job: Any) -> list[Any]:
        if world not in results:
            results[world] = run_on_ranks(world, workers.run_jobs, jobs(world))
        return [of_rank[jobs(world).index(job)] for of_rank in results[world]]

    return find


def enqueue_all(queue: NNSupportQueue, world: int, steps: int, uneven: bool = False) -> None:
    """What all ranks together enqueue, in rank-major order."""
    for step in workers.batches(world, steps, uneven):
        keys, ids = zip(*step, strict=True)
        queue.enqueue(torch.cat(keys), torch.cat(ids))


def assert_same_state(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def test_without_a_process_group_everything_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    assert D.all_gather_cat(rows) is rows
    assert (D.rank(), D.world_size()) == (0, 1)
    shuffled, permutation = D.batch_shuffle(rows, generator=torch.Generator().manual_seed(3))
    assert sorted(permutation.tolist()) == [0, 1, 2]
    assert torch.equal(D.batch_unshuffle(shuffled, permutation), rows)
    state = torch.random.get_rng_state()
    D.batch_shuffle(rows, generator=torch.Generator())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("distribution", ["gather", "local", "shard"])
def test_without_a_process_group_all_queues_are_the_plain_one(distribution: Any) -> None:
    queue, plain = NNSupportQueue(9, 6, distributed=distribution), NNSupportQueue(9, 6)
    for each in (queue, plain):
        workers.fill(each, 1, 3)
    queue.assert_synced()
    assert_same_state(queue.state_dict(), plain.state_dict())
    query, ids = torch.randn(2, 6), torch.arange(2)
    for a, b in zip(
        queue.nearest(query, 3, ids=ids), plain.nearest(query, 3, ids=ids), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("world", [on(2), on(4)])
def test_collectives(world: int, on_ranks: Ranks) -> None:
    results = on_ranks(world, workers.collectives)
    expected = torch.cat([torch.full((r + 1, 2), float(r)) for r in range(world)])
    start, shuffled_rows = 0, []
    for r, (rank, size, gathered, grad, shuffled, restored) in enumerate(results):
        assert (rank, size) == (r, world)
        assert torch.equal(gathered, expected)
        # Row i has the gradient i * (1 + 2 + ...), summed over the ranks.
        place = torch.arange(start, start + r + 1)[:, None].expand(-1, 2)
        assert torch.equal(grad, world * (world + 1) / 2 * place)
        start += r + 1
        assert torch.equal(restored, torch.arange(4.0) + 10 * r)
        shuffled_rows += shuffled.tolist()
    everything = [i + 10.0 * r for r in range(world) for i in range(4)]
    assert sorted(shuffled_rows) == everything
    assert shuffled_rows != everything


@pytest.mark.parametrize("world", [on(2), on(4)])
def test_shuffling_batches_of_different_sizes_raises_on_every_rank(
    world: int, on_ranks: Ranks
) -> None:
    message = (
        f"`tensor` must have the same number of rows on every rank; got {[4, 5] * (world // 2)}. "
        "Drop the last batch, with drop_last=True in the DataLoader and the sampler"
    )
    assert on_ranks(world, workers.uneven_shuffle) == [[message, message]] * world


@pytest.mark.parametrize(("world", "uneven"), [on(2, False), on(2, True), on(4, True)])
def test_gathered_queues_are_the_single_process_queue_bit_for_bit(
    world: int, uneven: bool, on_ranks: Ranks
) -> None:
    expected = NNSupportQueue(17, workers.DIM)
    enqueue_all(expected, world, 4, uneven)
    for state in on_ranks(world, workers.gather_queue, uneven):
        assert_same_state(state, expected.state_dict())


def test_local_queues_hold_their_own_rows(on_ranks: Ranks) -> None:
    for r, state in enumerate(on_ranks(2, workers.local_queue)):
        expected = NNSupportQueue(17, workers.DIM)
        for step in workers.batches(2, 4):
            expected.enqueue(*step[r])
        assert_same_state(state, expected.state_dict())


def test_queues_out_of_step_are_noticed(on_ranks: Ranks) -> None:
    message = (
        "the queues of ranks [1] differ from rank 0's; pass the same sequence of enqueue calls on "
        "every rank, and load the same checkpoint"
    )
    assert on_ranks(2, workers.out_of_sync) == [message, message]


@pytest.mark.parametrize(
    ("world", "lookup"), [on(world, lookup) for world in LOOKUPS for lookup in LOOKUPS[world]]
)
def test_sharded_lookup_is_the_lookup_in_all_rows_bit_for_bit(
    world: int, lookup: tuple[int, int, bool], on_ranks: Ranks
) -> None:
    k, min_age, uneven = lookup
    results = on_ranks(world, workers.shard_lookup, *lookup)
    whole = NNSupportQueue(5 * world, workers.DIM)
    whole.load_state_dict(
        {
            "keys": torch.cat([r[0] for r in results]),
            "ids": torch.cat([r[1] for r in results]),
            "stamps": torch.where(
                torch.cat([r[2] for r in results]), 1 - torch.cat([r[3] for r in results]), -1
            ),
            "cursor": torch.tensor(0),
            "step": torch.tensor(2),
            "has_ids": torch.tensor(1),
        }
    )
    for r, (*_, found) in enumerate(results):
        query, ids = workers.batches(world, 3, uneven)[2][r]
        expected = whole.nearest(query, k, ids=ids, min_age=min_age)
        assert torch.equal(found.similarity, expected.similarity)
        assert torch.equal(found.valid, expected.valid)
        assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("distribution", ["gather", "local", "shard"])
def test_ddp_broadcast_overwrites_no_queue(distribution: Any, on_ranks: Ranks) -> None:
    for r, state in enumerate(on_ranks(2, workers.ddp_keeps_queues, distribution)):
        expected = NNSupportQueue(8, workers.DIM)
        for step in workers.batches(2, 3):
            if distribution == "gather":
                expected.enqueue(*(torch.cat(part) for part in zip(*step, strict=True)))
            else:
                expected.enqueue(*step[r])
        assert_same_state(state, expected.state_dict())


def step_in_one_process(
    world: int, distribution: str, options: dict[str, Any], uneven: bool
) -> tuple[IIVCLOutput, Tensor]:
    """The terms on the whole batch, and the gradient of the encoder."""
    torch.manual_seed(0)
    module = workers.Step("gather", 20)
    if distribution == "shard":  # rows in shard order: rank 0's ring, then rank 1's, ...
        rings = [NNSupportQueue(20 // world, workers.DIM) for _ in range(world)]
        for step in workers.batches(world, 2):
            for ring, batch in zip(rings, step, strict=True):
                ring.enqueue(*batch)
        module.queue.keys = torch.cat([ring.keys for ring in rings])
        module.queue.ids = torch.cat([ring.ids for ring in rings])
        module.queue.stamps = torch.cat([ring.stamps for ring in rings])
    else:
        enqueue_all(module.queue, world, 2)
    inputs, ids = (torch.cat(p) for p in zip(*workers.batches(world, 3, uneven)[2], strict=True))
    query = module(inputs.double())
    out = IIVCLLoss(**options)(query, inputs.flip(1).double(), module.queue, ids=ids)
    out.loss.backward()
    grad = module.encoder.weight.grad
    assert grad is not None
    return out, grad


@pytest.mark.parametrize("distribution", SHARED)
@pytest.mark.parametrize(
    ("world", "loss"), [on(world, loss) for world in LOSSES for loss in LOSSES[world]]
)
def test_loss_and_gradient_are_those_of_one_process_on_the_whole_batch(
    distribution: str, world: int, loss: tuple[dict[str, Any], bool], on_ranks: Ranks
) -> None:
    results = on_ranks(world, workers.loss_of_all, distribution, *loss)
    expected, expected_grad = step_in_one_process(world, distribution, *loss)
    for term in range(3):
        mean = sum(result[term] for result in results) / world
        assert mean == pytest.approx(expected[term].item(), rel=1e-10)
    for *_, grad in results:
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("distribution", SHARED)
@pytest.mark.parametrize("world", [on(2), on(4)])
def test_a_learned_temperature_has_the_gradient_of_one_process(
    distribution: str, world: int, on_ranks: Ranks
) -> None:
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    options = {"num_neighbors": 3, "batch_negatives": True, "temperature": temperature}
    step_in_one_process(world, distribution, options, world == 4)
    assert temperature.grad is not None
    for grad in on_ranks(world, workers.learned_temperature, distribution, world == 4):
        torch.testing.assert_close(grad, temperature.grad, rtol=1e-9, atol=1e-11)
