"""Neighbour lookup in the queue."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from iivcl._candidates import Candidates
from iivcl._checks import check_at_least, check_shape, normalize_alike
from iivcl.queues._moco import MoCoQueue

__all__ = ["NNSupportQueue", "Neighbors", "agreed"]


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

    _has_own_nearest = False  # which the loss asks; torch 2.4 cannot compile the comparison

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._has_own_nearest = cls.nearest is not NNSupportQueue.nearest

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
        self.check_rows("query", query)
        self.check_ids(ids, query, "query")
        rows = self.placement.rows * self.placement.row_ranks
        check_at_least(1, k=k)
        if k > rows:
            raise ValueError(f"`k` must be in [1, {rows}], the size of the queue; got {k}")
        (unit,) = normalize_alike(query)
        return self._nearest(unit.float(), k, self.candidates(ids, min_age=min_age))

    @torch.no_grad()
    def _nearest(self, query: Tensor, k: int, candidates: Candidates) -> Neighbors:
        """Find what `nearest` does, of arguments that are checked and of unit length."""
        similarity, indices = self.placement.search(query, candidates, k)
        valid = similarity > -torch.inf  # nor is NaN, of a query that is not finite
        return Neighbors(
            similarity.nan_to_num(nan=-torch.inf, neginf=-torch.inf), indices * valid, valid
        )


def agreed(first: Neighbors, second: Neighbors) -> tuple[Neighbors, Neighbors]:
    """Keep the rows that two lookups have both found, such as those of two clips of a video.

    What both clips find is more often of the same class than what one finds: of five rows, about
    half are kept while the embedding has some order, and hardly any before.

    Args:
        first: Neighbors (B, k).
        second: Neighbors (B, l) of the same queue and videos.

    Returns:
        Of each the rows that are in the other too, best first; the others are not valid.

    Raises:
        ValueError: The numbers of queries differ.

    Example:
        >>> import torch
        >>> queue = NNSupportQueue(3, 2)
        >>> queue.enqueue(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
        >>> clips = torch.eye(2)  # of one video, that find rows 0 and 1, and rows 2 and 1
        >>> left, right = agreed(*(queue.nearest(clip[None], 2) for clip in clips))
        >>> left.indices, left.valid
        (tensor([[1, 0]]), tensor([[ True, False]]))
    """
    check_shape("second.indices", second.indices, "B k", B=(len(first.indices), "first"))
    rows = (
        first.indices.masked_fill(~first.valid, -1),
        second.indices.masked_fill(~second.valid, -2),
    )
    same = rows[0][:, :, None] == rows[1][:, None]  # (B, k, l)
    return _only(first, same.any(2)), _only(second, same.any(1))


def _only(found: Neighbors, kept: Tensor) -> Neighbors:
    similarity = found.similarity.masked_fill(~kept, -torch.inf)
    similarity, order = similarity.sort(dim=1, descending=True)
    kept = kept.gather(1, order)
    return Neighbors(similarity, found.indices.gather(1, order) * kept, kept)
