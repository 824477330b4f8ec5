"""What a queue costs, before one is built."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from iivcl._checks import check_at_least, check_choice
from iivcl.queues._placement import Distribution
from iivcl.queues._plan import Step, half_bytes, plan_search

__all__ = ["Estimate", "estimate"]

_FLOAT, _INT = 4, 8  # bytes of a similarity, and of an id, a stamp or an index


class Estimate(NamedTuple):
    """What a queue costs each rank.

    Attributes:
        held_bytes: State of the queue.
        workspace_bytes: Upper bound of what one lookup allocates beside its arguments.
        flops: Floating-point operations of the similarities of one lookup, 2 x B x K x D; of a
            sharded queue, with the queries of all ranks.
        communicated_bytes: What the rank receives per step for one enqueue and one lookup.
    """

    held_bytes: int
    workspace_bytes: int
    flops: int
    communicated_bytes: int


def estimate(
    size: int,
    dim: int,
    batch: int,
    k: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    world_size: int = 1,
    distributed: Distribution = "gather",
    device: Literal["cpu", "cuda"] = "cpu",
) -> Estimate:
    """Tell the memory, arithmetic and communication of an `NNSupportQueue`, without building it.

    Held are K x (4 D + 16) bytes. The work space does not grow with B x K: it is a tile of
    similarities, the maxima of a chunk of rows, and 13 to 20 bytes per row of the queue for masks
    and ids. The bytes are those of the tensors; CPU libraries and caching allocators keep some
    more.

    Args:
        size: K, rows of the queue (of one rank, for ``"shard"``).
        dim: D, length of a key.
        batch: B, queries and keys of one rank per step.
        k: Number of neighbours.
        dtype: Of the keys. A queue holds float32; another dtype is for a bank of your own that
            `exact_topk` searches.
        world_size: Number of ranks.
        distributed: What the ranks hold, as in `MoCoQueue`.
        device: Where the queue lives.

    Returns:
        Estimate.

    Raises:
        ValueError: A number is below 1, or an option is not one of its choices.
        TypeError: ``dtype`` is not floating-point.

    Example:
        >>> cost = estimate(65536, 128, batch=256, k=5)
        >>> cost.held_bytes / 2**20, cost.flops / 1e9  # MiB, GFLOP
        (33.00001525878906, 4.294967296)

        A hundred million rows over 64 ranks, each with as many as it takes:

        >>> cost = estimate(10**8 // 64, 128, 256, 5, world_size=64, distributed="shard")
        >>> round(cost.held_bytes / 2**30, 2)  # GiB
        0.77
    """
    check_at_least(1, size=size, dim=dim, batch=batch, k=k, world_size=world_size)
    if not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a floating-point dtype; got {dtype}")
    check_choice("distributed", distributed, ("gather", "local", "shard"))
    check_choice("device", device, ("cpu", "cuda"))
    # Bytes per row of another rank's batch: a key or query with its id, and results.
    key = dim * _FLOAT + _INT
    received = {"local": 0, "gather": key, "shard": key + k * (_FLOAT + _INT)}
    queries = batch * world_size if distributed == "shard" else batch
    return Estimate(
        held_bytes=size * (dim * dtype.itemsize + 2 * _INT) + 2 * _INT,
        # Whether a GPU has products of halves is not known here.
        workspace_bytes=max(
            _workspace(size, dim, queries, k, dtype.itemsize, device, has_halves)
            for has_halves in (False, device == "cuda")
        ),
        flops=2 * queries * size * dim,
        communicated_bytes=(world_size - 1) * batch * received[distributed],
    )


def _workspace(
    rows: int, dim: int, queries: int, k: int, itemsize: int, device: str, has_halves: bool
) -> int:
    """Add up what `NNSupportQueue.nearest` allocates in its phases, of which one is the largest."""
    on_cpu = device == "cpu"
    plan = plan_search(queries, dim, rows, k, on_cpu=on_cpu, has_halves=has_halves)
    converted = 0 if itemsize == _FLOAT else _FLOAT * dim  # per row that is not yet float32
    halves = half_bytes(dim) if plan.in_halves else 0
    gathered_row = _FLOAT * dim + (dim * itemsize if converted else 0)
    # Of a tile, on the CPU the comparisons of both halves of the ids, and one of them before its
    # conversion; elsewhere the comparison, and its union with the mask of rows.
    compared = (3 * _FLOAT if on_cpu else 2) * queries

    def peak(step: Step) -> int:
        chunk = step.stop - step.start
        if not step.in_blocks:
            return _FLOAT * queries * chunk + (compared + converted) * step.tile
        maxima = _FLOAT * queries * (-(-chunk // step.block) + step.tile // step.block)
        similarities = _FLOAT * queries * (step.held + step.block)
        beside = (converted + halves) * step.tile + compared * (step.tile + step.block)
        first_pass = maxima + similarities + beside
        candidates = k * step.block
        # Beside the gathered rows, their numbers, values and masks.
        looking = min(queries, step.at_once) if not on_cpu or step.held < chunk else queries
        row = 0 if step.held == chunk else gathered_row
        looked_up = looking * candidates * (row + 40)
        if on_cpu:
            looked_up += 25 * queries * candidates
        second_pass = 2 * maxima + similarities + looked_up
        return max(first_pass, second_pass)

    results = 64 * queries * k
    copies_of_queries = 5 * _FLOAT * queries * dim
    masks, ages = 13 * rows, 20 * rows
    rescoring = queries * k * gathered_row
    phases = max(rescoring, *map(peak, plan.steps))
    return copies_of_queries + results + max(masks + phases, ages)
