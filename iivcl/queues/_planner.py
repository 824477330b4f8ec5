"""What a queue costs, before one is built."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from .._checks import check_choice
from ._moco import Distribution
from ._topk import (
    _BLOCK,
    _CANDIDATE_BYTES,
    _default_chunk_size,
    has_blocks,
    rows_held,
    tile_rows,
)

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
    for name, value in (
        ("size", size),
        ("dim", dim),
        ("batch", batch),
        ("k", k),
        ("world_size", world_size),
    ):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
    if not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a floating-point dtype; got {dtype}")
    check_choice("distributed", distributed, ("gather", "local", "shard"))
    check_choice("device", device, ("cpu", "cuda"))
    queries = batch * world_size if distributed == "shard" else batch
    return Estimate(
        held_bytes=size * (dim * dtype.itemsize + 2 * _INT) + 2 * _INT,
        workspace_bytes=_workspace(size, dim, queries, k, dtype.itemsize, device),
        flops=2 * queries * size * dim,
        communicated_bytes=(world_size - 1) * batch * _numbers_per_key(dim, k, distributed),
    )


def _numbers_per_key(dim: int, k: int, distributed: Distribution) -> int:
    """Give the bytes received per row of another rank's batch."""
    key = dim * _FLOAT + _INT  # a key or query, and its id
    return {"local": 0, "gather": key, "shard": key + k * (_FLOAT + _INT)}[distributed]


def _workspace(rows: int, dim: int, queries: int, k: int, itemsize: int, device: str) -> int:
    """Follow `NNSupportQueue.nearest` through its phases, of which one is the largest."""
    # "meta" stands for an accelerator, which the machine that plans need not have.
    placed = torch.empty(queries, dim, device="cpu" if device == "cpu" else "meta")
    chunk = min(rows, _default_chunk_size(placed, placed))
    held = rows_held(placed, chunk, k)
    tile = min(chunk, tile_rows(placed)) if device == "cpu" else chunk
    blocks = has_blocks(placed, chunk, k)
    directly = min(chunk, 8 * _BLOCK * k) if blocks else chunk  # the rest of the last chunk
    candidates = k * _BLOCK
    converted = 0 if itemsize == _FLOAT else _FLOAT * dim  # per row that is not yet float32

    maxima = _FLOAT * queries * -(-chunk // _BLOCK)
    similarities = _FLOAT * queries * (held + _BLOCK)
    # Of a tile, on the CPU the comparisons of both halves of the ids, and one of them before its
    # conversion; elsewhere the comparison, and its union with the mask of rows.
    compared = (3 * _FLOAT if device == "cpu" else 2) * queries
    first_pass = maxima + similarities + compared * (tile + _BLOCK) + converted * tile
    without_blocks = _FLOAT * queries * directly + (compared + converted) * min(tile, directly)
    # Beside the gathered rows, their numbers, values and masks.
    at_once = min(queries, max(1, _CANDIDATE_BYTES // (_FLOAT * dim * candidates)))
    gathered = at_once * candidates * (_FLOAT * dim + (dim * itemsize if converted else 0) + 20)
    looked_up = _FLOAT * queries * candidates if held == chunk else gathered
    second_pass = 2 * maxima + similarities + looked_up + 25 * queries * candidates
    rescoring = queries * k * (_FLOAT * dim + (dim * itemsize if converted else 0))

    results = 64 * queries * k
    copies_of_queries = 5 * _FLOAT * queries * dim
    phases = [without_blocks, rescoring, *([first_pass, second_pass] if blocks else [])]
    masks, ages = 13 * rows, 20 * rows
    return copies_of_queries + results + max(masks + max(phases), ages)
