"""Neighbour lookup in the queue."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed as D
from ._moco import MoCoQueue
from ._topk import search

__all__ = ["NNSupportQueue", "Neighbors"]


class Neighbors(NamedTuple):
    """The k nearest rows of a queue for each of B queries, best first.

    Attributes:
        similarity: (B, k) float32 cosine, descending; -inf where not valid.
        indices: (B, k) int64 rows of ``queue.keys`` (global rows of a sharded queue); 0 where not
            valid.
        valid: (B, k) bool; False where fewer than k rows could be found.
    """

    similarity: Tensor
    indices: Tensor
    valid: Tensor


class NNSupportQueue(MoCoQueue):
    """A `MoCoQueue` that finds the nearest of its rows, exactly and never of the same video.

    Takes the arguments of `MoCoQueue`.

    Example:
        >>> import torch
        >>> queue = NNSupportQueue(4, 2)
        >>> queue.enqueue(torch.eye(2), torch.tensor([7, 8]))
        >>> found = queue.nearest(torch.tensor([[1.0, 0.0]]), k=2, ids=torch.tensor([7]))
        >>> found.indices, found.valid  # row 0 is video 7 itself, the other rows were not written
        (tensor([[1, 0]]), tensor([[ True, False]]))

    Source: the support set of Dwibedi et al., With a Little Help from My Friends, arXiv
    2104.14548, section 3.2; several neighbours and video ids: Fan et al., arXiv 2303.07317.
    """

    @torch.no_grad()
    def nearest(
        self, query: Tensor, k: int = 1, *, ids: Tensor | None = None, min_age: int = 0
    ) -> Neighbors:
        """Find the k rows most similar to each query.

        Rows never written, rows with the query's id and rows younger than ``min_age`` are left
        out. No host-device synchronisation, and shapes depend on shapes alone.

        A sharded queue is searched whole: every rank gathers all queries (world x B x D numbers),
        searches its own rows for all of them, and returns to each rank its k best per query
        (world x B x k values and rows).

        Args:
            query: (B, D) float, of any length; normalised here.
            k: Number of neighbours, 1 to the number of rows of the queue.
            ids: (B,) integer ids of the queries, required when the queue has ids.
            min_age: Least number of enqueue calls since a row was written.

        Returns:
            Neighbors of shape (B, k). Where fewer than k rows are eligible, or where the query is
            not finite, the entries left over are not valid.

        Raises:
            ValueError: A shape or device does not fit, ``k`` is larger than the queue, ``min_age``
                is negative, or ids are missing.
            TypeError: ``query`` is not floating-point or ``ids`` not integer.
        """
        self._check_rows("query", query)
        self.check_ids(ids, query, "query")
        rows = self.size * (D.world_size() if self.is_sharded else 1)
        if not 1 <= k <= rows:
            raise ValueError(f"`k` must be in [1, {rows}], the size of the queue; got {k}")
        if min_age < 0:
            raise ValueError(f"`min_age` must be at least 0; got {min_age}")
        query = F.normalize(query.float(), dim=1)
        finite = query.isfinite().all(1, keepdim=True)
        query = query.masked_fill(~finite, 0.0)
        find = self._nearest_of_all_shards if self.is_sharded else self._nearest_of_own
        similarity, indices = find(query, k, ids, min_age)
        valid = finite & (similarity > -torch.inf)
        return Neighbors(
            similarity.masked_fill(~valid, -torch.inf), indices.masked_fill(~valid, 0), valid
        )

    def _nearest_of_own(
        self, query: Tensor, k: int, ids: Tensor | None, min_age: int
    ) -> tuple[Tensor, Tensor]:
        eligible = self.valid if min_age == 0 else self.valid & (self.ages >= min_age)
        return search(
            query,
            self.keys,
            k,
            row_mask=eligible,
            query_ids=ids,
            bank_ids=None if ids is None else self.ids,
        )

    def _nearest_of_all_shards(
        self, query: Tensor, k: int, ids: Tensor | None, min_age: int
    ) -> tuple[Tensor, Tensor]:
        world, sizes = D.world_size(), D.gather_sizes(query)
        queries = D.all_gather_cat(query, sizes=sizes)
        all_ids = None if ids is None else D.all_gather_cat(ids, sizes=sizes)
        own_k = min(k, self.size)
        values, rows = self._nearest_of_own(queries, own_k, all_ids, min_age)
        rows = rows + D.rank() * self.size
        values = D.exchange(D.blocks_of(values, sizes)).transpose(0, 1)[: query.shape[0]]
        rows = D.exchange(D.blocks_of(rows, sizes)).transpose(0, 1)[: query.shape[0]]
        best, order = values.reshape(-1, world * own_k).topk(k)  # of (B, world x own_k)
        return best, rows.reshape(-1, world * own_k).gather(1, order)
