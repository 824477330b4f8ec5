"""Where the rows of a queue live: with one process, gathered on all ranks, local, or in shards.

A queue and a loss over it ask its `Placement` to write, search, add up and count, and know nothing
of ranks themselves.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from iivcl import distributed as D
from iivcl._candidates import NO_LOGIT, Candidates
from iivcl._engine import ChunkSize, streaming_chunk_size
from iivcl.queues._topk import search

Distribution = Literal["gather", "local", "shard"]


class Placement(NamedTuple):
    """The ranks whose batches, and whose rows, count as one.

    Attributes:
        batch_ranks: Number of ranks whose batches are one batch.
        row_ranks: Number of ranks whose rows are one queue; row i of rank r has the number
            r x rows + i.
        rows: Rows of each rank.
    """

    batch_ranks: int
    row_ranks: int
    rows: int

    @classmethod
    def of(cls, distributed: Distribution, rows: int) -> Placement:
        """Place the rows of a queue as things are now; without a process group all ways are one."""
        world = D.world_size()
        batch_ranks = 1 if distributed == "local" else world
        return cls(batch_ranks, world if distributed == "shard" else 1, rows)

    def to_write(self, keys: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Give the keys and ids that this rank writes when all ranks pass theirs."""
        if self.row_ranks > 1 or self.batch_ranks == 1:
            return keys, ids
        sizes = D.gather_sizes(keys)
        return D.all_gather_cat(keys, sizes=sizes), D.all_gather_cat(ids, sizes=sizes)

    def search(self, query: Tensor, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest rows (B, k), values and numbers, of this rank's ``candidates``.

        With shards, rank to rank go the queries, world x B x D numbers, and world x B x k results.
        """
        if self.row_ranks == 1:
            return search(query, candidates, k)
        ranks = _Ranks(query)
        values, rows = search(*ranks.gather_queries(candidates), min(k, self.rows))
        values, rows = map(ranks.give_back, (values, rows + D.rank() * self.rows))
        best, order = values.transpose(0, 1).flatten(1).topk(k)  # of (B, world x k)
        return best, rows.transpose(0, 1).flatten(1).gather(1, order)

    def log_sum_exp(
        self,
        query: Tensor,
        candidates: Candidates,
        rows: Tensor,
        counted: Tensor,
        chunk_size: ChunkSize,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split the logits of the rows that count into those of given ``rows`` and the rest.

        With shards, every rank treats all queries against its own rows, and each query's owner adds
        the parts up. Rank to rank go the queries, world x B x D numbers, and world x B x (1 + 2k)
        results; backward, the gradients of both.

        Args:
            query: (B, D), of unit length and divided by the temperature.
            candidates: This rank's rows, and which of them count.
            rows: (B, k) numbers of rows.
            counted: (B, k) bool, which of them count, as far as this rank can tell.
            chunk_size: As for `Candidates.log_sum_exp`, but streaming by default, whatever the
                size: its backward pass does not read the queue, which may have been written.

        Returns:
            Log-sum-exp of the rest (B,), logits of the rows (B, k), `NO_LOGIT` for those that do
            not count, and which of them count.
        """
        if self.row_ranks == 1:
            return *_split(query, candidates, rows, counted, chunk_size), counted
        ranks, k = _Ranks(query), rows.shape[1]
        query, candidates = ranks.gather_queries(candidates)
        rows = ranks.gather(rows.where(counted, -1)) - D.rank() * self.rows
        rows, counted = _counting(candidates, rows)
        rest, logits = _split(query, candidates, rows, counted, chunk_size)
        logits = logits.masked_fill(~counted, 0.0)
        parts = ranks.give_back(torch.cat([rest[:, None], logits, counted.to(rest.dtype)], 1))
        rest, logits, counts = parts[..., 0], parts[..., 1 : 1 + k], parts[..., 1 + k :]
        counted = counts.sum(0) > 0
        return rest.logsumexp(0), logits.sum(0).masked_fill(~counted, NO_LOGIT), counted

    def counting(self, candidates: Candidates, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``rows`` (B, k) of another lookup, -1 for none, and which count.

        With shards, as far as this rank can tell.
        """
        return (rows, rows >= 0) if self.row_ranks > 1 else _counting(candidates, rows)

    def others_of_batch(self, keys: Tensor, ids: Tensor | None) -> Candidates:
        """Take the keys (B, P, D) of the other videos of the batch as candidates, for each query.

        The batch is that of all ranks unless each rank's queue is its own.
        """
        batch, clips = keys.shape[:2]
        own = torch.arange(batch * clips, device=keys.device).view(batch, clips)
        key_ids = ids
        if self.batch_ranks > 1:
            sizes = D.gather_sizes(keys)
            keys = D.all_gather_cat(keys, sizes=sizes)
            own = own + clips * sum(sizes[: D.rank()])
            key_ids = None if ids is None else D.all_gather_cat(ids, sizes=sizes)
        keys = keys.flatten(0, 1)
        if key_ids is None:
            return Candidates(keys, without=own, normalized=True)
        key_ids = key_ids.repeat_interleave(clips)
        return Candidates(keys, ids=key_ids, query_ids=ids, normalized=True)

    def counts(self, batch: int, counted: Tensor) -> tuple[Tensor | int, Tensor]:
        """Give what sums over this rank's rows are divided by for means over those of all ranks.

        The first is for sums over all ``batch`` rows, the second over those ``counted`` (B,).
        """
        own = counted.sum()
        if self.batch_ranks == 1:
            return max(batch, 1), own.clamp_(min=1)
        both = torch.stack([own.new_full((), batch), own])
        dist.all_reduce(both)
        every, some = (both.clamp_(min=1).double() / self.batch_ranks).unbind()
        return every, some

    def assert_synced(self, checksum: Tensor) -> None:
        """Raise when ranks that should hold the same rows have another ``checksum`` than rank 0."""
        if self.row_ranks > 1 or self.batch_ranks == 1:
            return
        checksums = D.all_gather_cat(checksum[None], sizes=[1] * self.batch_ranks)
        differ = (checksums != checksums[0]).any(1).nonzero().flatten().tolist()
        if differ:
            raise RuntimeError(
                f"the queues of ranks {differ} differ from rank 0's; pass the same sequence of "
                "enqueue calls on every rank, and load the same checkpoint"
            )


def _counting(candidates: Candidates, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Give ``rows`` (B, k), 0 for those that are none or do not count, and which count."""
    inside = rows.clamp(0, len(candidates.keys) - 1)
    return inside, candidates.allowed(inside).logical_and_(inside == rows)


def _split(
    query: Tensor, candidates: Candidates, rows: Tensor, counted: Tensor, chunk_size: ChunkSize
) -> tuple[Tensor, Tensor]:
    """Split the logits of this process's candidates."""
    absent = ~counted
    bias = query.new_zeros(absent.shape).masked_fill_(absent, NO_LOGIT)
    keys = candidates.keys[rows].to(query.dtype)
    logits = torch.baddbmm(bias[:, :, None], keys, query[:, :, None]).squeeze(2)
    rest = without(candidates, rows, absent)
    size = chunk_size or streaming_chunk_size(query)
    return rest.log_sum_exp(query, chunk_size=size), logits


def without(candidates: Candidates, rows: Tensor, absent: Tensor) -> Candidates:
    """Leave out the ``rows`` (B, k) that are not ``absent``."""
    named = rows.masked_fill(absent, -1) if rows.shape[1] else None
    # torch 2.4 cannot compile `_replace`.
    return Candidates(*candidates[:5], without=named, normalized=candidates.normalized)


class _Ranks:
    """The ways of every rank's queries to all ranks, and of their results back."""

    def __init__(self, query: Tensor) -> None:
        self.query, self.sizes = query, D.gather_sizes(query)

    def gather(self, tensor: Tensor) -> Tensor:
        return D.all_gather_cat(tensor, sizes=self.sizes)

    def gather_queries(self, candidates: Candidates) -> tuple[Tensor, Candidates]:
        """Gather the queries and their ids."""
        ids = candidates.query_ids
        ids = None if ids is None else self.gather(ids.to(torch.int64))  # which ranks may not share
        return self.gather(self.query), Candidates(*candidates[:4], ids, *candidates[5:])

    def give_back(self, parts: Tensor) -> Tensor:
        """Return to each rank, for its B queries, the parts of all ranks, (world, B, ...)."""
        return D.exchange(D.blocks_of(parts, self.sizes))[:, : self.query.shape[0]]
