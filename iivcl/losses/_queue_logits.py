"""Logits of a batch against a queue, wherever its rows live."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import distributed as D
from ..queues import MoCoQueue, Neighbors
from ._columns import ChunkSize, Columns, column_log_sum_exp, streaming_chunk_size


def queue_logits(
    query: Tensor,
    queue: MoCoQueue,
    ids: Tensor | None,
    found: Neighbors,
    *,
    temperature: float,
    chunk_size: ChunkSize,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the queue's logits into neighbours and the rest.

    Rows never written and rows of the query's own video are left out of both.

    Args:
        query: (B, D), normalised.
        queue: The queue, which may be sharded.
        ids: (B,) or None.
        found: Neighbors (B, k).
        temperature: Divides the cosines.
        chunk_size: As for the losses.

    Returns:
        Log-sum-exp of the rest (B,), logits of the neighbours (B, k), and which of them count
        (B, k) bool.
    """
    if chunk_size is None:
        # Streaming whatever the size: its backward pass does not read the queue, which may have
        # been written by then.
        chunk_size = streaming_chunk_size(query)
    of_queue = _logits_over_shards if queue.is_sharded else _logits_of_own
    return of_queue(query, queue, ids, found.indices, found.valid, temperature, chunk_size)


def batch_log_sum_exp(
    query: Tensor,
    keys: Tensor,
    queue: MoCoQueue,
    ids: Tensor | None,
    *,
    temperature: float,
    chunk_size: ChunkSize,
) -> Tensor:
    """Compute the log-sum-exp (B,) over the keys (B, P, D) of the batch's other videos.

    The batch is that of all ranks unless each rank's queue is its own.
    """
    batch, clips = keys.shape[:2]
    own = torch.arange(batch * clips, device=keys.device).view(batch, clips)
    if queue.distributed != "local" and D.world_size() > 1:
        sizes = D.gather_sizes(keys)
        keys = D.all_gather_cat(keys, sizes=sizes)
        own = own + clips * sum(sizes[: D.rank()])
        key_ids = None if ids is None else D.all_gather_cat(ids, sizes=sizes)
    else:
        key_ids = ids
    if key_ids is None or ids is None:
        columns = Columns(excluded=own)
    else:
        columns = Columns(query_ids=ids, key_ids=key_ids.repeat_interleave(clips))
    return column_log_sum_exp(
        query, keys.flatten(0, 1), columns, temperature=temperature, chunk_size=chunk_size
    )


def _logits_of_own(
    query: Tensor,
    queue: MoCoQueue,
    ids: Tensor | None,
    rows: Tensor,
    valid: Tensor,
    temperature: float,
    chunk_size: ChunkSize,
) -> tuple[Tensor, Tensor, Tensor]:
    valid = valid & queue.valid[rows]
    if ids is not None:
        valid = valid & (queue.ids[rows] != ids[:, None])
    columns = Columns(
        keep_rows=queue.valid,
        query_ids=ids,
        key_ids=None if ids is None else queue.ids,
        excluded=torch.where(valid, rows, -1) if rows.shape[1] else None,
    )
    rest = column_log_sum_exp(
        query, queue.keys, columns, temperature=temperature, chunk_size=chunk_size
    )
    neighbors = queue.keys[rows].to(query.dtype)  # (B, k, D)
    return rest, torch.einsum("bd,bkd->bk", query, neighbors) / temperature, valid


def _logits_over_shards(
    query: Tensor,
    queue: MoCoQueue,
    ids: Tensor | None,
    rows: Tensor,
    valid: Tensor,
    temperature: float,
    chunk_size: ChunkSize,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every rank treats all queries against its own rows; each query's owner adds the parts up.

    Rank to rank go the queries, world x B x D numbers, and world x B x (1 + 2k) results; backward,
    the gradients of both.
    """
    sizes, k = D.gather_sizes(query), rows.shape[1]

    def gather(tensor: Tensor) -> Tensor:
        return D.all_gather_cat(tensor, sizes=sizes)

    own_rows = gather(rows) - D.rank() * queue.size
    owned = gather(valid) & (own_rows >= 0) & (own_rows < queue.size)
    rest, logits, counted = _logits_of_own(
        gather(query),
        queue,
        None if ids is None else gather(ids),
        own_rows.masked_fill(~owned, 0),
        owned,
        temperature,
        chunk_size,
    )
    parts = torch.cat([rest[:, None], logits.masked_fill(~counted, 0.0), counted.to(rest.dtype)], 1)
    parts = D.exchange(D.blocks_of(parts, sizes))[:, : query.shape[0]]  # (world, B, 1 + 2k)
    rest, logits, counted = parts[..., 0], parts[..., 1 : 1 + k], parts[..., 1 + k :]
    return rest.logsumexp(0), logits.sum(0), counted.sum(0) > 0
